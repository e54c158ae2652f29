"""Every operator at its sizes: the cases that are timed, how many bytes a call moves, and what to reach."""

from collections.abc import Iterator
from math import prod

import torch

from .arguments import SAMPLES, candidates, chosen, losses, norms, order, scores, tensors, visits
from .case import DRAW, Case
from .nearest import draw, multinomial, randperm, topk
from .shapes import LISTS


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
