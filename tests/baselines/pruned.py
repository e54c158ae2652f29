"""Epochs of InfoBatchSampler, and losses for them."""

import io

import torch
from ausam.tables import N, dataset
from torch.utils.data import DataLoader

from ausam_ext.baselines import InfoBatchSampler

ALL = torch.arange(N)


def losses_of(epoch, n=N):
    """Of every sample, some above and more below the mean."""
    return torch.empty(n).exponential_(generator=torch.Generator().manual_seed(epoch))


def scored(epoch=0, n=N, batch_size=32, epochs=200, **options):
    batches = InfoBatchSampler(n, batch_size, epochs=epochs, **options)
    batches.update(torch.arange(n), losses_of(epoch, n))
    return batches


def samples(batches):
    return [i for row in batches for i in row]


def weights(batches):
    return batches.weights(torch.arange(batches.num_samples)).tolist()


def epoch_of(batches, loader, epoch):
    """Trains on what is left of it; gives index and weights of each batch."""
    batches.set_epoch(epoch)
    seen = []
    for index, (x, y) in batches.indexed(loader):
        assert torch.equal(index, x) and torch.equal(y, x * 10)
        seen.append((epoch, index.tolist(), batches.weights(index).tolist()))
        batches.update(index, losses_of(epoch)[index])
    return seen


def looped(epochs, workers=0, prefetch=None, **options):
    """A run, and what every sample scores at its end, by another way."""
    batches = InfoBatchSampler(N, 16, epochs=10, seed=5, **options)
    loader = DataLoader(dataset(), batch_sampler=batches, num_workers=workers, prefetch_factor=prefetch)
    seen, scores = [], [3.0] * N
    for epoch in range(epochs):
        part = epoch_of(batches, loader, epoch)
        for _, index, _ in part:
            for i in index:
                scores[i] = losses_of(epoch)[i].item()
        seen += part
    return batches, seen, scores


def stored(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def within_an_epoch():
    batches = scored(batch_size=16)
    batches.set_epoch(1)
    for index, _ in batches.indexed(DataLoader(dataset(), batch_sampler=batches)):
        batches.update(index, losses_of(1)[index])
        return batches
