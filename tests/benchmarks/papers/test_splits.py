"""Validation images and subsets: how many, of which classes, and that a seed chooses them."""

import pytest
import torch

pytest.importorskip("PIL")

from benchmarks.data import Images, subset, validation_split


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


def numbered(size):
    """Images that hold their own number."""
    y = torch.arange(size)
    x = torch.stack([y // 256, y % 256], 1).to(torch.uint8).view(size, 1, 1, 2)
    return Images(x, y, size, (0.25,), (0.5,))


@pytest.mark.parametrize("size", [1, 40, 50, None])
@pytest.mark.parametrize("validation", [False, True])
def test_a_subset_never_holds_what_is_scored_on(size, validation):
    train, test = numbered(60), numbered(7)
    chosen, scored = subset(train, test, size=size, validation=validation, seed=1)
    assert len(chosen) == (size or (50 if validation else 60)) and chosen.y.unique().numel() == len(chosen)
    assert (chosen.mean, chosen.std, chosen.classes) == ((0.25,), (0.5,), 60)
    for images in (chosen, scored):
        assert torch.equal(images.x[:, 0, 0, 1].long(), images.y)  # each image keeps its label
    if validation:
        assert scored.y.tolist() == list(range(50, 60)) and chosen.y.amax() < 50
    else:
        assert scored is test


def test_a_seed_draws_the_subset_which_is_the_same_for_validation_and_test():
    train, test = numbered(60), numbered(7)
    first, again, other = (
        subset(train, test, size=20, validation=validation, seed=seed)[0].y
        for validation, seed in ((False, 3), (True, 3), (True, 4))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first, first.sort().values)


@pytest.mark.parametrize("size", [0, -1, 51])
@pytest.mark.parametrize("validation", [False, True])
def test_subsets_of_no_size(size, validation):
    with pytest.raises(ValueError, match=f"size: expected an integer from 1 to 50, got {size}"):
        subset(numbered(60), numbered(7), size=size, validation=validation, seed=0)
