"""`datasets`: the weights of a loop by hand, with a length and as a stream; what is refused."""

import pytest
import torch
from torch.utils.data import DataLoader

from ausam_ext import ADLP, AUSAMBatchSampler


@pytest.fixture
def hand(example, by_hand):
    """Trains a fresh ``Training`` on ``steps(batches)``."""

    def train(samples, epochs, steps):
        torch.manual_seed(0)
        new = example.Training(samples, epochs)
        by_hand(new.model, new.optimizer, new.sam, steps(new.batches), new.adlp)
        return new

    return train


def assert_same(ours, theirs):
    pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(ours.adlp.total, theirs.adlp.total) and torch.equal(ours.adlp.count, theirs.adlp.count)


def test_with_a_length(example, hand, chosen):
    data = example.make_data()
    torch.manual_seed(0)
    ours = example.train(data, epochs=3)
    x, y = data["x"][:], data["y"][:]
    assert_same(ours, hand(len(data), 3, lambda batches: chosen(batches, 3, x, y)))
    assert ours.adlp.count.sum() == 1797 + 2 * (28 * 32 + 2)


@pytest.mark.parametrize("shuffled", [False, True])
def test_stream(example, hand, shuffled):
    data = example.make_data()

    def make():
        stream = data.to_iterable_dataset(num_shards=4)
        return stream.shuffle(seed=0, buffer_size=500) if shuffled else stream

    def steps(batches):
        stream = make()
        for epoch in range(3):
            batches.set_epoch(epoch)
            stream.set_epoch(epoch)
            samples = list(stream)
            for start in range(0, len(samples), 64):
                x, y, index = (
                    torch.stack([s[k] for s in samples[start : start + 64]]) for k in ("x", "y", "id")
                )
                keep = batches.select(index)
                yield index[keep], x[keep], y[keep]

    torch.manual_seed(0)
    ours = example.train_stream(make(), len(data), epochs=3)
    assert_same(ours, hand(len(data), 3, steps))
    assert ours.adlp.count.sum() == 1797 + 2 * (28 * 32 + 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_index_is_that_of_the_sample(example, workers):
    data = example.make_data()
    batches = AUSAMBatchSampler(ADLP(len(data)), 64, full_epochs=0)
    loader = DataLoader(data, batch_sampler=batches, num_workers=workers)
    for index, batch in batches.indexed(loader):
        assert torch.equal(index, batch["id"])


def test_what_would_pair_samples_wrongly_is_refused(example):
    data = example.make_data()
    batches = AUSAMBatchSampler(ADLP(len(data)), 64)
    with pytest.raises(ValueError, match="IterableDataset"):
        batches.indexed(DataLoader(data.to_iterable_dataset(), batch_size=64))
    fewer = data.filter(lambda row: row["y"] > 0)
    with pytest.raises(ValueError, match="1797 samples, as the table has"):
        batches.indexed(DataLoader(fewer, batch_sampler=batches))
