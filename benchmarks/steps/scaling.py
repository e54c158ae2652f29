"""How a step's own cost grows: `python -m benchmarks.steps.scaling`.

What SAM and AUSAM add to the passes: the ascent and the way back; recording, choosing in the loop, planning
an epoch, each per batch. Against the size of a batch and of the training set, the number of parameter tensors
and, on the CPU, of threads.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from math import log

import torch
from torch import Tensor, nn

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler

from .. import parts
from ..harness import Row, compare, row
from ..networks import resnet18

Columns = dict[str, tuple[Callable[[], object], int]]  # what to time, and for how many steps it is enough
BATCH_SIZE = 128
PLAN = 1 << 20  # samples that are planned in one call; fewer if there are not as many


def of_passes(model: nn.Module) -> Columns:
    """What SAM and vSAM do about the passes, which themselves only put gradients in place."""
    params = list(model.parameters())
    first, second, third = ([torch.randn_like(p) for p in params] for _ in range(3))
    sam, sampled = SAM(model), VSAM(model, warmup_steps=0)
    reusing = VSAM(model, warmup_steps=0, gamma=1, max_reuse=1 << 40)

    def put(grads: list[Tensor]) -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g

    def two_passes(method: SAM) -> None:
        put(first)
        with method.perturbed():
            put(second)

    def one_pass() -> None:
        put(third)
        reusing.reuse_()

    two_passes(reusing)
    return {
        "SAM": (lambda: two_passes(sam), 1),
        "vSAM, two passes": (lambda: two_passes(sampled), 1),
        "vSAM, one pass": (one_pass, 1),
    }


def of_samples(samples: int, batch_size: int, device: str) -> Columns:
    """What AUSAM does about the samples, of which it keeps half."""
    adlp = ADLP(samples, device)
    adlp.count.fill_(1)
    adlp.total.uniform_()
    # select() counts batches, and a plan begins at the one that is due: hence two.
    batches, in_loop = (AUSAMBatchSampler(adlp, batch_size, full_epochs=0, warmup_epochs=0) for _ in range(2))
    kept = batch_size // 2
    losses = torch.rand(2, kept, device=device)
    # Too many for a cache, as those of an epoch are.
    candidates = cycle(torch.randint(samples, (max(1, PLAN // 2 // batch_size), batch_size), device=device))
    planned = min(len(batches), PLAN // batch_size)
    return {
        "record": (lambda: adlp.update(next(candidates)[:kept], *losses), 1),
        "choose in the loop": (lambda: in_loop.select(next(candidates)), 1),
        "plan": (lambda: deque(islice(batches, planned), maxlen=0), planned),
    }


def panel(what: str, unit: str, columns: dict[int, Columns], device: str) -> list[Row]:
    """A row for each size, all of which take turns; the last one's note has the slopes."""
    calls = {(size, name): call for size, named in columns.items() for name, (call, _) in named.items()}
    timed = compare({f"{s} {name}": f for (s, name), f in calls.items()}, rounds=12, device=device)
    rows = []
    for size, named in columns.items():
        seconds = {name: [t / steps for t in timed[f"{size} {name}"]] for name, (_, steps) in named.items()}
        rows.append(row("scaling", what, f"{size:,} {unit}", seconds))
    lines = {name: [r["columns"][name]["median"] for r in rows] for name in rows[0]["columns"]}
    rows[-1]["note"] = "slopes in logarithms: " + ", ".join(
        f"{name} {slope(list(columns), line):.2f}" for name, line in lines.items()
    )
    return rows


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Of the line that fits best in logarithms: 0 if the time stays, 1 if it grows in proportion."""
    x, y = [log(v) for v in sizes], [log(v) for v in seconds]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - x_mean) ** 2 for a in x)


def on_threads(threads: int, columns: Columns) -> Iterator[tuple[str, tuple[Callable[[], object], int]]]:
    for name, (call, steps) in columns.items():

        def set_and_call(call: Callable[[], object] = call) -> None:
            torch.set_num_threads(threads)
            call()

        yield name, (set_and_call, steps)


def of_threads(what: str, columns: Columns, device: str) -> list[Row]:
    before = torch.get_num_threads()
    try:
        return panel(what, "threads", {n: dict(on_threads(n, columns)) for n in (1, 2)}, device)
    finally:
        torch.set_num_threads(before)


def panels(device: str, brief: bool) -> parts.Parts:
    def tensors(n: int) -> nn.Module:
        return nn.ParameterList(torch.randn(1000) for _ in range(n)).to(device)

    def batch_sizes() -> list[Row]:
        columns = {k: of_samples(1_000_000, k, device) for k in (32, 128, 512, 2048, 8192)}
        return panel("Batch size", "samples", columns, device)

    def tables() -> list[Row]:
        columns = {10**i: of_samples(10**i, BATCH_SIZE, device) for i in range(3, 9)}
        return panel("Size of the training set", "samples", columns, device)

    def lists() -> list[Row]:
        columns = {n: of_passes(tensors(n)) for n in (10, 30, 100, 300, 1000)}
        return panel("Parameter tensors of 1,000 elements", "tensors", columns, device)

    named = {"batch size": batch_sizes, "training set": tables, "tensors": lists}
    if device == "cpu":
        named["threads of the passes"] = lambda: of_threads(
            "Threads, ResNet-18", of_passes(resnet18()), device
        )
        named["threads of the samples"] = lambda: of_threads(
            "Threads, 128 of 1 M samples", of_samples(1_000_000, BATCH_SIZE, device), device
        )
    return named


if __name__ == "__main__":
    parts.main("steps.scaling", panels, threads=1)  # what else runs on a machine disturbs one thread least
