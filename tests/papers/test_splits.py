"""Validation images: how many, of which classes, and that a seed chooses them."""

import pytest
import torch

pytest.importorskip("PIL")

from benchmarks.data import validation_split


@pytest.mark.parametrize("counts", [[100] * 10, [500, 250, 120, 60, 7], [1, 1, 998], [10]])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.25, 0.5, 0.9])
def test_each_class_gives_its_share(counts, share):
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(9))]
    size = max(1, round(share * len(y)))
    train, validation = validation_split(y, size, seed=3)
    assert len(validation) == size and train.dtype == validation.dtype == torch.int64
    assert torch.cat([train, validation]).sort().values.tolist() == list(range(len(y)))
    assert torch.equal(train, train.sort().values) and torch.equal(validation, validation.sort().values)
    given = y[validation].bincount(minlength=len(counts))
    for n, got in zip(counts, given.tolist(), strict=True):
        assert abs(got - n * size / len(y)) <= 1


def test_a_seed_chooses():
    y = torch.arange(1000) % 10
    _, first = validation_split(y, 100, seed=0)
    _, again = validation_split(y, 100, seed=0)
    _, other = validation_split(y, 100, seed=1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.isin(first, other).sum() < 40
    # Every image is chosen by some seed, about as often as another.
    times = torch.zeros(1000)
    for seed in range(300):
        times[validation_split(y, 100, seed)[1]] += 1
    assert times.min() > 10 and times.max() < 55  # 30 each, standard deviation 5.2


@pytest.mark.parametrize("size", [0, 10, -1])
def test_sizes_that_leave_nothing(size):
    with pytest.raises(ValueError, match=f"size: expected an integer from 1 to 9, got {size}"):
        validation_split(torch.zeros(10, dtype=torch.int64), size, 0)
