"""Times columns that take turns, and keeps what came out.

A machine is slower at some moments than at others. So every column is timed in every round, and what is
compared is the ratio within a round: its median and quartiles. Only ratios mean something elsewhere.

    samples = compare({"native": f, "eager": g})
    save([row("operators", "psf_reuse_", "ResNet-50", samples, against="eager", target=1.5)])
"""

import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"

Samples = dict[str, list[float]]  # of each column: seconds per call, one entry per round
Row = dict[str, Any]


def compare(
    columns: dict[str, Callable[[], object]],
    *,
    rounds: int = 30,
    min_time: float = 1e-3,
    seconds: float = math.inf,
    device: str = "cpu",
) -> Samples:
    """Times the columns in turn, ``rounds`` times.

    On the CPU a sample is as many calls as fill ``min_time`` seconds. On CUDA each call starts with a cold
    cache and is timed by events, and a sample is the mean of those calls.

    Args:
        columns: what to call; the same number of calls is made before, to warm up.
        rounds: samples of each column. Every other round goes through the columns backwards.
        min_time: seconds that a sample takes at least.
        seconds: no further round begins after so many, once there are six.

    Returns:
        Seconds per call of each column, round by round.
    """
    clock = _Events() if device == "cuda" else _wall_clock
    calls = {name: _calls_that_fill(min_time, f, clock) for name, f in columns.items()}
    samples: Samples = {name: [] for name in columns}
    collecting = gc.isenabled()
    gc.disable()
    start = time.perf_counter()
    try:
        for turn in range(rounds):
            if turn >= 6 and time.perf_counter() - start > seconds:
                break
            for name in list(columns)[:: -1 if turn % 2 else 1]:
                samples[name].append(clock(columns[name], calls[name]) / calls[name])
    finally:
        if collecting:
            gc.enable()
    return samples


def _wall_clock(f: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        f()
    return time.perf_counter() - start


class _Events:
    """Seconds of ``calls`` calls on the GPU, each after its caches were filled with something else.

    By reading: lines that were written would have to leave the cache during the call.
    """

    def __init__(self) -> None:
        size = 2 * torch.cuda.get_device_properties("cuda").L2_cache_size
        self.other = torch.zeros(max(size, 1 << 28) // 4, device="cuda")

    def __call__(self, f: Callable[[], object], calls: int) -> float:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        torch.cuda.synchronize()
        for start, end in events:
            self.other.sum()
            start.record()
            f()
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in events) / 1e3


def _calls_that_fill(min_time: float, f: Callable[[], object], clock: Callable[..., float]) -> int:
    f()  # what only the first call costs counts for none
    calls = 1
    while (seconds := clock(f, calls)) < min_time:
        calls = min(10 * calls, max(calls + 1, math.ceil(1.2 * calls * min_time / max(seconds, 1e-9))))
    return calls


def row(
    suite: str,
    what: str,
    size: str,
    samples: Samples,
    *,
    against: str | None = None,
    target: float | None = None,
    bytes: int | None = None,
    note: str | None = None,
    **facts: Any,
) -> Row:
    """A line of a suite's table, as it is stored.

    ``ratios`` are how many times faster the first column is than each other one: medians of the other's
    seconds over the first's in the same round.

    Args:
        against: the column that ``target`` is about; the second if it is not given.
        target: the ratio to reach.
        bytes: how many a call has to move.
        note: why a target is missed, or what is special.
        facts: whatever else a suite counts, such as ``launches``.
    """
    first, *others = samples
    ratios = {
        name: _spread([b / a for a, b in zip(samples[first], samples[name], strict=True)]) for name in others
    }
    return {
        "suite": suite,
        "what": what,
        "size": size,
        "columns": {name: {**_spread(seconds), "n": len(seconds)} for name, seconds in samples.items()},
        "ratios": ratios,
        "against": against or next(iter(others), None),
        "target": target,
        "bytes": bytes,
        "note": note,
        **facts,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {"median": _short(median), "q1": _short(q1), "q3": _short(q3)}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures depend on: processor, threads, versions."""
    description = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": import_module("ausam_ext._C").compiler,
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties("cuda")
        description |= {"gpu": gpu.name, "memory": gpu.total_memory, "cuda": torch.version.cuda}
    return description


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def result_file(device: str = "cpu", folder: Path = RESULTS) -> Path:
    """``cpu.json``, or a name made of the GPU's."""
    if device == "cpu":
        return folder / "cpu.json"
    letters = (c if c.isalnum() else "-" for c in torch.cuda.get_device_name().lower())
    return folder / f"{''.join(letters)}.json"


def save(rows: Sequence[Row], device: str = "cpu", folder: Path = RESULTS) -> Path:
    """Writes the rows into the machine's file, in place of all that is there of the same suites."""
    path = result_file(device, folder)
    suites = _stored(path)
    for suite in dict.fromkeys(r["suite"] for r in rows):
        suites[suite] = {"machine": machine(device), "rows": [r for r in rows if r["suite"] == suite]}
    replace(path, _one_row_per_line(dict(sorted(suites.items()))))
    return path


def add(rows: Sequence[Row], device: str = "cpu", folder: Path = RESULTS) -> Path:
    """Adds the rows to the machine's file; one of the same suite, name and size makes way."""
    stored = [r for suite in _stored(result_file(device, folder)).values() for r in suite["rows"]]
    merged = {(r["suite"], r["what"], r["size"]): r for r in (*stored, *rows)}
    changed = {r["suite"] for r in rows}
    return save([r for r in merged.values() if r["suite"] in changed], device, folder)


def replace(path: Path, text: str) -> None:
    """Writes a file so that at every moment the old one or the new one is there, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _stored(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _one_row_per_line(suites: dict[str, Any]) -> str:
    """JSON in which a change of one row is a change of one line."""
    blocks = []
    for name, suite in suites.items():
        rows = ",\n  ".join(json.dumps(r, ensure_ascii=False) for r in suite["rows"])
        blocks.append(
            f'"{name}": {{\n "machine": {json.dumps(suite["machine"])},\n "rows": [\n  {rows}\n ]\n}}'
        )
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def launches(f: Callable[[], object]) -> int:
    """Kernels, copies and fills that a call starts on the GPU."""
    f()
    torch.cuda.synchronize()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
    ) as profile:
        f()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def host_seconds(f: Callable[[], object], device: str, calls: int = 20) -> float:
    """Seconds per call until the host goes on, whatever the GPU still has to do."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    f()
    wait()
    seconds = _wall_clock(f, calls) / calls
    wait()
    return seconds


def graph(f: Callable[[], object]) -> Callable[[], None]:
    """Replays one call of ``f`` from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        f()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    # Other threads may go on: a loader's takes pinned memory meanwhile.
    with torch.cuda.graph(captured, capture_error_mode="thread_local"):
        f()
    return captured.replay


def copy_of(bytes: int, device: str = "cpu") -> Callable[[], Tensor]:
    """A copy that moves as many bytes, half of them read and half written: what memory allows."""
    source = torch.zeros(max(1, bytes // 2), dtype=torch.int8, device=device)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)
