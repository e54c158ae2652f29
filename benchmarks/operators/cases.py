"""Every operator at its sizes: what is timed, beside what, how many bytes a call moves, and what to reach.

Columns of a case, all on the same tensors:

- ``native``: the compiled kernel. The ratios are its.
- ``eager``: the plain-PyTorch reference.
- ``torch.compile``: that, compiled. It takes seconds per shape, so that not every size has it.
- PyTorch's nearest calls, by their name; with "part: " before it if they do only a part of the work.
- ``copy``: a copy that moves as many bytes, the pace that memory allows.
- on CUDA, ``graph``: the native call replayed from a CUDA graph, and ``launches`` counts what it starts.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ausam_ext import ops, reference

from ..harness import Row, compare, copy_of, graph, host_seconds, launches, row
from .shapes import LISTS

WEIGHTS = {"s_min": 0.1, "s_max": 1.0}
DRAW = "part: exponential_"
SAMPLES = 1_280_000  # in the table, as many as ImageNet's

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


def scores(rows: int, k: int, noise: bool = True) -> Arguments:
    def arguments(device: str) -> Any:
        drawn = {"noise": torch.empty(rows, k, device=device).exponential_(), **WEIGHTS} if noise else WEIGHTS
        return (torch.rand(rows, k, device=device), k // 2), drawn

    return arguments


def chosen(rows: int, k: int) -> Arguments:
    def arguments(device: str) -> Any:
        x, noise = torch.rand(rows, k, device=device), torch.empty(rows, k, device=device).exponential_()
        return (x, ops.subset_sample(x, k // 2, noise=noise), noise), WEIGHTS

    return arguments


def candidates(rows: int, k: int) -> Arguments:
    def arguments(device: str) -> Any:
        table = torch.rand(SAMPLES, device=device), torch.ones(SAMPLES, dtype=torch.int32, device=device)
        index = torch.randint(0, SAMPLES, (rows, k), device=device)
        return (*table, index, k // 2), {
            "noise": torch.empty(rows, k, device=device).exponential_(),
            **WEIGHTS,
        }

    return arguments


def visits(n: int) -> Arguments:
    def arguments(device: str) -> Any:
        table = torch.zeros(SAMPLES, device=device), torch.zeros(SAMPLES, dtype=torch.int32, device=device)
        index = torch.randperm(SAMPLES, device=device)[:n]
        return (*table, index, torch.rand(n, device=device), torch.rand(n, device=device)), {}

    return arguments


def losses(n: int) -> Arguments:
    return lambda device: ((torch.rand(n, device=device), torch.rand(n, device=device)), {})


def order(n: int) -> Arguments:
    """Of an epoch."""
    return lambda device: ((torch.arange(n, device=device), n, torch.randint(1 << 32, (8,)).tolist()), {})


def norms(n: int) -> Arguments:
    return lambda device: ((torch.rand(n, device=device), 5), {})


def tensors(network: str, lists: int, *rest: Any) -> Arguments:
    """That many lists of the network's tensors, and what else the operator takes."""

    def arguments(device: str) -> Any:
        made = ([torch.randn(shape, device=device) for shape in LISTS[network]] for _ in range(lists))
        return (*made, *(value(device) if callable(value) else value for value in rest)), {}

    return arguments


def weights(scores: Tensor, s_min: float, s_max: float) -> Tensor:
    """Eq. 8's, of scores that are all finite and not all equal."""
    low, high = scores.aminmax(dim=-1, keepdim=True)
    return (scores - low).div_(high - low).mul_(s_max - s_min).add_(s_min)


def topk(scores: Tensor, k: int, *, noise: Tensor, **bounds: float) -> Tensor:
    """The same choice, of such scores and if no two keys are equal: as fast as PyTorch's calls do it.

    Unlike the reference it waits for the device, to see how many there are.
    """
    keys = weights(scores, **bounds).div_(noise)
    threshold = keys.topk(k, sorted=False).values.amin(-1, keepdim=True)
    return (keys >= threshold).nonzero()[:, -1].view(*scores.shape[:-1], k)


def multinomial(scores: Tensor, k: int, **bounds: float) -> Tensor:
    """The same choice with its draw."""
    return torch.multinomial(weights(scores, **bounds), k)


def randperm(position: Tensor, n: int, keys: list[int]) -> Tensor:
    """Another one, which is stored."""
    return torch.randperm(n, device=position.device)


def draw(scores: Tensor, k: int, **_: float) -> Tensor:
    """Only the noise, which the operator and ``torch.multinomial`` both draw."""
    return torch.empty_like(scores).exponential_()


def text(n: int) -> str:
    return f"{n >> 20} M" if n >= 1 << 20 else f"{n:,}"


def _sampling() -> Iterator[Case]:
    shapes = [(1, k) for k in (16, 128, 512, 1024, 4096, 1 << 16, 1 << 20)]
    shapes += [(10_000, k) for k in (16, 128, 1024)]
    targets = {(1, 128): 4, (1, 512): 4, (1, 1024): 4, (1, 4096): 3, (1, 1 << 20): 3, (10_000, 128): 6}
    for rows, k in shapes:
        size = text(k) if rows == 1 else f"{rows:,} rows of {text(k)}"
        elements, result = rows * k, 8 * rows * (k // 2)
        some = (rows, k) in {(1, 128), (1, 1 << 20), (10_000, 128)}
        yield Case(
            "subset_sample",
            size,
            scores(rows, k),
            8 * elements + result,
            {"topk": topk},
            target=targets.get((rows, k)),
            against="topk",
            on_cuda=("eager", 5),
            compiled=some,
            gated=(rows, k) in {(1, 128), (1, 1024), (10_000, 16)},
        )
        if some or (rows, k) == (1, 1024):
            yield Case(
                "subset_sample with its draw",
                size,
                scores(rows, k, noise=False),
                12 * elements + result,
                {"torch.multinomial": multinomial, DRAW: draw},
                target=2,
                against="torch.multinomial",
                on_cuda=("torch.multinomial", 5),
                draws=True,
            )
        yield Case(
            "adlp_sample",
            size,
            candidates(rows, k),
            20 * elements + result,
            compiled=(rows, k) == (10_000, 128),
            gated=(rows, k) == (1, 128),
        )
    for rows, k in [(1, 128), (1, 4096), (1, 1 << 20), (10_000, 128)]:
        yield Case(
            "subset_weights",
            text(k) if rows == 1 else f"{rows:,} rows of {text(k)}",
            chosen(rows, k),
            8 * rows * k + 12 * rows * (k // 2),
            on_cuda=("eager", 5),
            compiled=(rows, k) in {(1, 128), (10_000, 128)},
        )


def _statistics() -> Iterator[Case]:
    for n in (16, 128, 1024, 1 << 16, 1 << 20):
        yield Case(
            "adlp_update_",
            text(n),
            visits(n),
            32 * n,
            target={128: 2.5, 1 << 20: 2}.get(n),
            compiled=n in (128, 1 << 20),
            gated=n in (128, 1 << 16),
        )
    for n in (16, 128, 1 << 20):
        yield Case("dlp", text(n), losses(n), 12 * n, {"part: sub": torch.sub}, compiled=n == 128)
    for n in (50, 1000):
        yield Case(
            "sliced_variance",
            f"N = {n:,}, M = 5",
            norms(n),
            4 * n,
            {"part: var": lambda norms, slices: norms.var()},
            target=4 if n == 50 else None,
            compiled=n == 50,
            gated=n == 50,
        )


def _permutations() -> Iterator[Case]:
    for n in (1 << 16, SAMPLES):
        yield Case("permute", f"{n:,}", order(n), 16 * n, {"torch.randperm": randperm})


def _tensor_lists() -> Iterator[Case]:
    for network, shapes in LISTS.items():
        n = sum(map(prod, shapes))
        small, target = network == "ResNet-18", 1.5 if network == "ResNet-50" else None
        options = {"compiled": small, "gated": small}
        yield Case(
            "perturb_",
            network,
            tensors(network, 3, 0.05),
            20 * n,  # reads g for the norm; then reads w and g, writes w and the backup
            {"part: _foreach_norm": lambda w, g, backups, rho: torch._foreach_norm(g)},
            target=target,
            on_cuda=("copy", 0.85),
            **options,
        )
        yield Case(
            "restore_",
            network,
            tensors(network, 2),
            8 * n,
            {"_foreach_copy_": torch._foreach_copy_},
            **options,
        )
        yield Case(
            "psf_capture_",
            network,
            tensors(network, 2),
            12 * n,
            {"part: _foreach_sub_": torch._foreach_sub_},
            target=target,
            on_cuda=("copy", 0.85),
            **options,
        )
        yield Case(
            "psf_reuse_",
            network,
            tensors(network, 2, lambda device: torch.tensor(1e-3, device=device)),
            12 * n,
            {"_foreach_add_": lambda g, psf, scale: torch._foreach_add_(g, psf, alpha=1e-3)},
            target=target and 0.95,
            against="_foreach_add_",
            on_cuda=("_foreach_add_", 0.95),
            **options,
        )


def _in_groups(cases: list[Case]) -> list[Case]:
    operators = list(dict.fromkeys(case.what for case in cases))
    return sorted(cases, key=lambda case: operators.index(case.what))


CASES = _in_groups([*_sampling(), *_statistics(), *_permutations(), *_tensor_lists()])
