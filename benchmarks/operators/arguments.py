"""What the operators are called with, on a device."""

from typing import Any

import torch

from ausam_ext import ops

from .case import Arguments
from .shapes import LISTS

WEIGHTS = {"s_min": 0.1, "s_max": 1.0}
SAMPLES = 1_280_000  # in the table, as many as ImageNet's


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
