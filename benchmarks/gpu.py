"""`make gpu`: builds, tests and times the CUDA kernels on this machine's GPU, and writes down what came out.

    python -m benchmarks.gpu [--seconds 530]

Takes the Python environment as it is and needs no network. Every step has a time limit of its own, runs even
where an earlier one failed, and leaves its log in ``build/gpu``. The outcome goes to
``benchmarks/results/checks/<name of the GPU>.json`` and a Markdown file beside it; what the benchmarks
measure to ``benchmarks/results/<name of the GPU>.json``. The status is not 0 unless every step passed.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "checks"
LOGS = ROOT / "build" / "gpu"
OPERATORS = ("sampling", "statistics", "tensor_lists", "operator_contract", "bad_input", "device_operators")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FEW_THREADS = {"OMP_NUM_THREADS": "2"}  # for what runs beside others
SECONDS = "{seconds}"  # in a command: how many the step may take, less some to end in
ENDING = 15.0
ERRORS_FOUND = 86  # the exit status that compute-sanitizer is asked for

Outcome = dict[str, Any]


class Step(NamedTuple):
    name: str
    command: list[str]
    seconds: float  # at most
    environment: dict[str, str] = {}  # noqa: RUF012
    must_contain: str = ""  # else the log shows that nothing was checked
    leaves: float = 0.0  # of the time for everything


def pytest(*options: str) -> list[str]:
    """pytest with the plugins that the tests need, whatever else is installed."""
    plugins = ("-p", "_hypothesis_pytestplugin", "-p", "pytest_benchmark.plugin")
    return [sys.executable, "-m", "pytest", "-q", *plugins, *options]


def suite(name: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{name}"]


def tests(*names: str) -> list[str]:
    return [f"tests/test_{name}.py" for name in names]


def sanitizer() -> str:
    """compute-sanitizer, on the PATH or beside nvcc."""
    nvcc = shutil.which("nvcc")
    beside = Path(nvcc).resolve().parent / "compute-sanitizer" if nvcc else None
    default = Path("/usr/local/cuda/bin/compute-sanitizer")
    found = [str(p) for p in (beside, default) if p is not None and p.exists()]
    return shutil.which("compute-sanitizer") or (found[0] if found else "compute-sanitizer")


def steps() -> list[list[Step]]:
    """What is done, in order; the steps of one list at the same time, those that are timed alone."""
    on_gpu = ("--backend=cuda", "-k", "cuda")
    # Left out: what needs other packages or a network, or builds.
    others = ("demo", "packaging", "benchmarks", "cuda_build", "emulation", "docs", "readme", "gpu_command")
    whole = ["tests", "--ignore=tests/frameworks", *(f"--ignore={t}" for t in tests(*others))]
    checked = [
        Step(
            tool,
            [
                *(sanitizer(), "--tool", tool, "--error-exitcode", str(ERRORS_FOUND)),
                *("--target-processes", "application-only", "--print-limit", "20"),
                # torch makes calls that fail, and handles it.
                *(["--report-api-errors", "no"] if tool == "memcheck" else []),
                # opcheck and streams need torch's allocator, and no kernel of ours more than the others do.
                *pytest("--backend=cuda", "-k", "cuda and not opcheck and not current_stream"),
                *tests(*OPERATORS),
            ],
            240,
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", **FEW_THREADS},
            "SUMMARY: ",
        )
        for tool in TOOLS
    ]
    not_whole = [f"--ignore={t}" for t in tests("device_graphs")]
    tested = [
        Step(
            "tests",
            [*pytest(*on_gpu, "--continue-on-collection-errors"), *whole, *not_whole],
            240,
            FEW_THREADS,
        ),
        Step(
            "no synchronisation",
            [*pytest("--backend=cuda-no-sync", "-k", "cuda"), *tests(*OPERATORS[:-1])],
            240,
            FEW_THREADS,
        ),
        Step("graphs", [*pytest(*on_gpu), *tests("device_graphs")], 240, FEW_THREADS),
    ]
    operators = [
        *pytest("--benchmark-only", "--benchmark-max-time=0.1", "--benchmark-min-rounds=3", "-k", "cuda"),
        *(f"--benchmark-json={LOGS / 'benchmarks.json'}", "benchmarks/operators/test_operators.py"),
    ]
    return [
        [Step("build", [sys.executable, "setup.py", "build_ext", "--inplace"], 180, {"FORCE_CUDA": "1"})],
        [*tested, *checked],
        [Step("operators", operators, 200)],
        [Step("memory", [*suite("steps.memory")], 100)],
        [Step("scaling", [*suite("steps.scaling")], 100)],
        [Step("steps", [*suite("steps"), "--seconds", SECONDS], 300, leaves=25)],
        [Step("report", [*suite("report")], 100)],
    ]


def execute(step: Step, deadline: float, logs: Path) -> Outcome:
    """Runs one step; its outcome, whatever happens."""
    log = logs / f"{step.name.replace(' ', '-')}.log"
    limit = min(step.seconds, deadline - time.monotonic() - step.leaves)
    command = [part.replace(SECONDS, f"{limit - ENDING:.0f}") for part in step.command]
    outcome: Outcome = {"step": step.name, "passed": False, "log": log.name, "seconds": 0.0, "counts": {}}
    if limit <= 1 + (ENDING if command != step.command else 0):
        return {**outcome, "why": "no time was left"}
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    environment |= step.environment
    start = time.monotonic()
    try:
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                status = process.wait(limit)
                why = "" if status == 0 else f"exit status {status}"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its children too
                process.wait()
                why = f"not done after {limit:.0f} s"
        text = log.read_text(errors="replace")
        outcome["counts"] = counts(text)
        if not why and step.must_contain not in text:
            why = f"its log does not contain {step.must_contain!r}"
        if not why and step.command[1:3] == ["-m", "pytest"] and not outcome["counts"].get("passed"):
            why = "no test passed"
    except OSError as error:
        why = str(error)
    return {**outcome, "passed": not why, "why": why, "seconds": round(time.monotonic() - start, 1)}


def counts(log: str) -> dict[str, int]:
    """How many tests passed, failed and so on, and what compute-sanitizer found, from the end of a log."""
    found: dict[str, int] = {}
    for line in log.splitlines()[-60:]:
        if re.search(r"\d+ \w+.* in [\d.]+s", line):
            found |= {
                word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", line)
            }
        if match := re.search(r"SUMMARY: (\d+) (?:error|hazard)", line):
            found["findings"] = int(match[1])
    return found


def run(stages: Sequence[Sequence[Step]], seconds: float, logs: Path) -> list[Outcome]:
    """All steps, one list after the other, in ``seconds`` altogether."""
    logs.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    outcomes = []
    for stage in stages:
        with ThreadPoolExecutor(len(stage)) as pool:
            for outcome in pool.map(lambda step: execute(step, deadline, logs), stage):
                print(line(outcome), flush=True)
                outcomes.append(outcome)
    return outcomes


def line(outcome: Outcome) -> str:
    facts = ", ".join(f"{n} {word}" for word, n in outcome["counts"].items())
    said = "passed" if outcome["passed"] else f"FAILED ({outcome['why']})"
    return f"{outcome['step']:20} {outcome['seconds']:6.1f} s  {said}  {facts}".rstrip()


def summary(machine: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The outcome as Markdown."""
    rows = [
        f"| {o['step']} | {'passed' if o['passed'] else 'failed: ' + o['why']} | {o['seconds']:.1f} | "
        f"{', '.join(f'{n} {word}' for word, n in o['counts'].items())} |"
        for o in outcomes
    ]
    facts = [f"- {name}: {value}" for name, value in machine.items()]
    title = f"# {machine['gpu']}: {sum(o['passed'] for o in outcomes)} of {len(outcomes)} steps passed"
    return "\n".join(
        [title, "", *facts, "", "| step | outcome | s | counts |", "|---|---|---:|---|", *rows, ""]
    )


def write(machine: dict[str, Any], outcomes: Sequence[Outcome], folder: Path, logs: Path) -> Path:
    """``<gpu>.json`` and ``.md``; what pytest-benchmark measured is in the former."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    path = folder / f"{name}.json"
    stored: dict[str, Any] = {"machine": machine, "steps": list(outcomes), "benchmarks": []}
    try:
        measured = json.loads((logs / "benchmarks.json").read_text())["benchmarks"]
        stored["benchmarks"] = [
            {
                "name": b["name"],
                "group": b["group"],
                **{k: b["stats"][k] for k in ("median", "iqr", "rounds")},
            }
            for b in measured
        ]
    except (OSError, ValueError, KeyError) as error:
        stored["benchmarks_missing"] = repr(error)
    path.write_text(json.dumps(stored, indent=1) + "\n")
    path.with_suffix(".md").write_text(summary(machine, outcomes))
    return path


def describe() -> dict[str, Any] | None:
    """The machine; None without an NVIDIA GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": gpu.name,
        "GPUs": torch.cuda.device_count(),
        "compute capability": f"{gpu.major}.{gpu.minor}",
        "memory": gpu.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds, tests and times the CUDA kernels on this GPU.")
    parser.add_argument("--seconds", type=float, default=530, help="for everything together")
    seconds = parser.parse_args().seconds
    machine = describe()
    if machine is None:
        import torch

        print(f"no NVIDIA GPU: torch {torch.__version__} sees none; nothing was run", file=sys.stderr)
        return 2
    shutil.rmtree(LOGS, ignore_errors=True)
    outcomes = run(steps(), seconds, LOGS)
    path = write(machine, outcomes, RESULTS, LOGS)
    print(f"\n{path}\nlogs: {LOGS}")
    return 0 if all(o["passed"] for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
