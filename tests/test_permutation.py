"""Permutations computed value by value: bijections of any length, and as random as stored ones."""

import math
from collections import Counter
from itertools import permutations

import pytest
import torch

from ausam_ext.permutation import permute


def permutation(n, seed=0):
    return permute(torch.arange(n), n, torch.Generator().manual_seed(seed))


def deviations(counts, expected, freedom):
    """How far a chi-square statistic is from its mean, in standard deviations."""
    return (((counts - expected) ** 2 / expected).sum().item() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [*range(1, 71), 127, 128, 129, 1023, 1024, 1025, 65535, 65536, 65537, 100_003])
def test_each_number_once(n):
    assert torch.equal(permutation(n, seed=n).sort().values, torch.arange(n))


def test_any_part_alone_gives_the_same_values():
    whole, n = permutation(10_007), 10_007
    for part in (torch.arange(1), torch.arange(17, 5000), torch.tensor([n - 1, 3, 3]), torch.arange(0)):
        assert torch.equal(permute(part, n, torch.Generator().manual_seed(0)), whole[part])


@pytest.mark.parametrize("n", [10**8, (1 << 33) + 1, 10**12])
def test_great_lengths_stay_within_them_and_spread_evenly(n):
    values = permute(torch.arange(n - 50_000, n), n, torch.Generator().manual_seed(0))
    assert values.min() >= 0 and values.max() < n and len(values.unique()) == 50_000
    shares = torch.bincount(values * 100 // n, minlength=100).double()
    assert deviations(shares, 500.0, 99) < 5


@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_order_of_a_few_is_as_likely(n):
    seen = Counter(tuple(permutation(n, seed).tolist()) for seed in range(360))
    counts = torch.tensor([seen[p] for p in permutations(range(n))], dtype=torch.float64)
    assert deviations(counts, 360 / math.factorial(n), math.factorial(n) - 1) < 5


@pytest.mark.parametrize("n", [7, 16, 33])
def test_positions_values_and_neighbours_are_uniform(n):
    keys = 500
    drawn = torch.stack([permutation(n, seed) for seed in range(keys)])
    at = torch.bincount((torch.arange(n) * n + drawn).flatten(), minlength=n * n).double()
    assert deviations(at, keys / n, (n - 1) ** 2) < 5
    steps = (drawn[:, 1:] - drawn[:, :-1]).remainder(n).flatten()
    assert deviations(torch.bincount(steps, minlength=n)[1:].double(), len(steps) / (n - 1), n - 2) < 5
    pairs = torch.bincount(drawn[:, 0] * n + drawn[:, n // 2], minlength=n * n).double().view(n, n)
    different = ~torch.eye(n, dtype=torch.bool)
    assert deviations(pairs[different], keys / (n * (n - 1)), n * (n - 1) - 1) < 5


@pytest.mark.parametrize("n", [1 << 17, 100_003])
def test_epochs_and_neighbours_are_uncorrelated(n):
    a, b = (permutation(n, seed).double() for seed in (0, 1))
    position = torch.arange(n).double()
    pairs = [(a, position), (a, b)]
    pairs += [(a[:-lag], a[lag:]) for lag in (1, 2, 3, 64, 256, 257, 1 << 15)]
    for x, y in pairs:
        assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1].item()) < 5 / math.sqrt(len(x))
    near = ((a[:-1] - a[1:]).abs() < 128).sum().item()  # numbers that were close, and still are
    assert abs(near - 2 * 127) < 5 * math.sqrt(2 * 127)
    same_batch = (a.argsort() // 128 == b.argsort() // 128).sum().item()
    assert abs(same_batch - 128) < 5 * math.sqrt(128)


def test_the_same_state_gives_the_same_permutation_and_another_another():
    assert torch.equal(permutation(1000, 3), permutation(1000, 3))
    assert not torch.equal(permutation(1000, 3), permutation(1000, 4))
