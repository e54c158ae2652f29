"""A table, data and losses for the tests of the sampler."""

import torch
from torch.utils.data import TensorDataset

from ausam_ext import ADLP

N = 203


def scored(n=N, seed=0):
    """A table as after some epochs: some samples never visited."""
    adlp, g = ADLP(n), torch.Generator().manual_seed(seed)
    index = torch.randint(0, n, (3 * n,), generator=g)
    adlp.update(index, torch.zeros(3 * n), torch.rand(3 * n, generator=g))
    return adlp


def epoch_of(batches, epoch):
    batches.set_epoch(epoch)
    return list(batches)


def dataset(n=N):
    return TensorDataset(torch.arange(n), torch.arange(n) * 10)


def pretend_losses(index, epoch):
    """Per-sample losses that differ by sample and epoch."""
    g = torch.Generator().manual_seed(epoch)
    table = torch.rand(N, 2, generator=g)
    return table[index, 0], table[index, 1]
