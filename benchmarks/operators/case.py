"""A case: an operator at one size, what is timed beside it, and the row of figures that comes of it.

Columns of a case, all on the same tensors:

- ``native``: the compiled kernel. The ratios are its.
- ``eager``: the plain-PyTorch reference.
- ``torch.compile``: that, compiled. It takes seconds per shape, so that not every size has it.
- PyTorch's nearest calls, by their name; with "part: " before it if they do only a part of the work.
- ``copy``: a copy that moves as many bytes, the pace that memory allows.
- on CUDA, ``graph``: the native call replayed from a CUDA graph, and ``launches`` counts what it starts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from ausam_ext import ops, reference

from ..harness import Row, compare, copy_of, graph, host_seconds, launches, row
from .shapes import LISTS

DRAW = "part: exponential_"
Calls = dict[str, Callable[[], object]]
Arguments = Callable[[str], tuple[tuple[Any, ...], dict[str, Any]]]  # positional and by name, on a device


@dataclass(frozen=True)
class Case:
    """An operator at one size.

    Attributes:
        arguments: of the operator, on a device.
        bytes: that a call has to read and write, caches aside.
        others: PyTorch's nearest calls, on the operator's arguments.
        target: how many times faster the native call should be on the CPU than the column ``against``.
        on_cuda: such a column, and how many times, on CUDA.
        compiled: whether ``torch.compile`` of the reference is timed as well; not for lists on CUDA: for
            them it compiles a hundred kernels.
        gated: whether CI holds its ratio (benchmarks/operators/gate.py).
        draws: whether it is about the operator with the draw of its noise, which the reference leaves to it.
    """

    what: str
    size: str
    arguments: Arguments
    bytes: int
    others: Mapping[str, Callable[..., object]] = field(default_factory=dict)
    target: float | None = None
    against: str = "eager"
    on_cuda: tuple[str, float] | None = None
    compiled: bool = False
    gated: bool = False
    draws: bool = False

    def __str__(self) -> str:
        return f"{self.what}, {self.size}"

    def columns(self, device: str = "cpu", *, rivals: bool = True) -> Calls:
        """What to call for each column; only ``native`` and ``eager`` without ``rivals``."""
        args, kwargs = self.arguments(device)
        name = self.what.split()[0]
        native, eager = getattr(ops, name), getattr(reference, name)
        calls: Calls = {"native": lambda: native(*args, **kwargs)}
        if not self.draws:
            calls["eager"] = lambda: eager(*args, **kwargs)
        if not rivals:
            return calls
        if self.compiled and not (device == "cuda" and self.size in LISTS):
            torch.compiler.reset()  # its limit of recompilations is for one function, and these are many
            compiled = torch.compile(eager, dynamic=False)
            calls["torch.compile"] = lambda: compiled(*args, **kwargs)
        for other, call in self.others.items():
            calls[other] = lambda call=call: call(*args, **kwargs)
        calls["copy"] = copy_of(self.bytes, device)
        if device == "cuda":
            calls["graph"] = graph(calls["native"])
        return calls


def measure(case: Case, device: str = "cpu", *, rounds: int = 30, seconds: float) -> Row:
    """The case's row of the suite "operators"."""
    columns = case.columns(device)
    samples = compare(columns, rounds=rounds, seconds=seconds, device=device)
    against, target = case.against, case.target
    if device == "cuda":
        against, target = case.on_cuda or (case.against, None)
    made = row("operators", case.what, case.size, samples, against=against, target=target, bytes=case.bytes)
    if device == "cuda":
        made["launches"] = {name: launches(columns[name]) for name in ("native", "eager") if name in columns}
        made["host_microseconds"] = {
            name: round(1e6 * host_seconds(columns[name], device), 1) for name in made["launches"]
        }
    elif DRAW in columns:
        limit = median(b / a for a, b in zip(samples[DRAW], samples["torch.multinomial"], strict=True))
        made["note"] = (
            "both wait for PyTorch's exponential_, on the CPU in one thread; "
            f"without any time for the rest the ratio would be {limit:.2f}"
        )
    return made
