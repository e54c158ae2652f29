"""Parts of a data set. Validation images are held back, so that settings are not chosen on the test set."""

from dataclasses import replace

import torch
from torch import Tensor

from .images import Images


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


def subset(
    train: Images, test: Images, *, size: int | None, validation: bool, seed: int
) -> tuple[Images, Images]:
    """``size`` of the training images, or all, drawn by ``seed``, and what to score on.

    ``validation``: that is the last sixth of the training images, and the subset is drawn from those before.
    """
    if not validation and size is None:
        return train, test
    rest = len(train) - len(train) // 6
    if size is not None and not 0 < size <= rest:
        raise ValueError(f"size: expected an integer from 1 to {rest}, got {size}")
    rows = torch.randperm(rest, generator=torch.Generator().manual_seed(seed))[:size].sort().values
    chosen = replace(train, x=train.x[rows], y=train.y[rows])
    return chosen, replace(train, x=train.x[rest:], y=train.y[rest:]) if validation else test
