"""Validation images: held back from the training images, so that settings are not chosen on the test set."""

import torch
from torch import Tensor


def validation_split(y: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and ``size`` rows to validate on, both sorted: int64, on the CPU.

    Stratified: each class gives its share of the ``size`` rows, up to one row. ``seed`` chooses which.
    """
    if not 0 < size < len(y):
        raise ValueError(f"size: expected an integer from 1 to {len(y) - 1}, got {size}")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[y.cpu()[order].argsort(stable=True)]  # one class after the other, shuffled in itself
    chosen = torch.zeros(len(y), dtype=torch.bool)
    chosen[order[torch.arange(size) * len(y) // size]] = True  # at even distances
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()
