"""The share of copy bandwidth that the operators on lists of tensors reach.

`python -m benchmarks.operators.bandwidth`. Both are replayed from CUDA graphs, so that no host time counts.
The copy moves as many bytes.
"""

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor

from ausam_ext import ops

from .. import parts
from ..harness import Row, compare, copy_of, graph, row
from .shapes import LISTS, Shape

COPY = "copy"
BILLION: list[Shape] = [(10**9,)]
# How many lists each takes; how often an element is read or written; the share to reach (DESIGN's of CUDA).
OPERATORS: dict[str, tuple[int, int, float | None]] = {
    "perturb_": (3, 5, 0.85),  # reads g for the norm; then reads w and g, writes w and the backup
    "restore_": (2, 2, None),
    "psf_capture_": (2, 3, 0.85),
    "psf_reuse_": (2, 3, None),
}


def call(what: str, lists: list[list[Tensor]]) -> Callable[[], object]:
    if what == "perturb_":
        return lambda: ops.perturb_(*lists, 0.05)
    if what == "psf_reuse_":
        scale = torch.tensor(1e-3, device=lists[0][0].device)
        return lambda: ops.psf_reuse_(*lists, scale)
    operator = getattr(ops, what)
    return lambda: operator(*lists)


def measure(what: str, name: str, shapes: list[Shape], dtype: torch.dtype, *, device: str) -> list[Row]:
    count, times, target = OPERATORS[what]
    lists = [[torch.ones(shape, dtype=dtype, device=device) for shape in shapes] for _ in range(count)]
    bytes = times * sum(map(prod, shapes)) * dtype.itemsize
    calls: dict[str, Callable[[], object]] = {"native": call(what, lists), COPY: copy_of(bytes, device)}
    if device == "cuda":
        calls = {column: graph(f) for column, f in calls.items()}
    timed = compare(calls, rounds=12, device=device)
    size = f"{name}, {str(dtype).removeprefix('torch.')}"
    return [row("bandwidth", what, size, timed, against=COPY, target=target, bytes=bytes)]


def cases(device: str, brief: bool) -> parts.Parts:
    sizes = {"ResNet-50": LISTS["ResNet-50"], "ViT-B": LISTS["ViT-B"], "one tensor of 10^9": BILLION}
    if device == "cpu":
        sizes = {"ResNet-18": LISTS["ResNet-18"]}
    return {
        f"{what}, {name}, {dtype}": partial(measure, what, name, shapes, dtype, device=device)
        for name, shapes in sizes.items()
        for dtype in (torch.float32, torch.bfloat16)
        for what in OPERATORS
    }


if __name__ == "__main__":
    parts.main("operators.bandwidth", cases, threads=1)
