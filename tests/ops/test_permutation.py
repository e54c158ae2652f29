"""Permutations computed value by value: bijections of any length, and as random as stored ones."""

import math
from collections import Counter
from itertools import permutations

import pytest
import torch

from ausam_ext import ops, reference
from ausam_ext.permutation import draw_keys


def keys(seed):
    return draw_keys(torch.Generator().manual_seed(seed))


def permutation(n, seed=0):
    return ops.permute(torch.arange(n), n, keys(seed))


def oracle(x, n, key):
    """The Feistel network and its cycle walking, once more in Python's own integers."""

    def mixed(x):
        x = (x ^ x >> 16) * 0x21F0AAAD % 2**32
        x = (x ^ x >> 15) * 0x735A2D97 % 2**32
        return x ^ x >> 15

    low_bits = max(6, (n - 1).bit_length()) // 2
    tops = max(8, -(-n // 2**low_bits))
    while True:
        top, low = divmod(x, 2**low_bits)
        for i in range(0, 8, 2):
            low ^= mixed(top ^ key[i]) % 2**low_bits
            top = (top + (mixed(low ^ key[i + 1]) * tops >> 32)) % tops
        x = top << low_bits | low
        if x < n:
            return x


GREAT = [2**31 - 1, 2**31, 2**32 + 1, 2**60, 2**60 + 1, 2**61, 2**61 + 12345, 2**62]


@pytest.mark.parametrize("n", [1, 2, 7, 63, 64, 65, 1000, 4096, 65537, *GREAT])
@pytest.mark.parametrize("key", [keys(0), keys(1), [2**32 - 1] * 8, [0] * 8], ids=["a", "b", "ones", "0"])
def test_the_same_values_as_the_oracle(backend, n, key):
    position = torch.randint(0, n, (2 * 301,), generator=torch.Generator().manual_seed(2))[::2]
    position[:2] = torch.tensor([0, n - 1])
    assert ops.permute(position, n, key).tolist() == [oracle(x, n, key) for x in position.tolist()]


@pytest.mark.parametrize("outside", [-1, 10, 16, 64, 2**62, -(2**63)])
def test_a_position_outside_is_an_error_or_marked(backend, outside):
    """On CUDA, where to raise would be to synchronise, its value is -1; the walk might never end."""
    position, marked = torch.tensor([3, outside, 9]), [oracle(3, 10, keys(0)), -1, oracle(9, 10, keys(0))]
    assert reference.permute(position, 10, keys(0)).tolist() == marked  # as on a GPU without kernels
    if backend.startswith("cuda"):
        assert ops.permute(position, 10, keys(0)).tolist() == marked
        return
    with pytest.raises(IndexError, match=f"^position: .* n = 10, got {outside}$"):
        ops.permute(position, 10, keys(0))


def test_the_values_do_not_depend_on_the_number_of_threads(threads):
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(permutation(100_003))
    assert all(torch.equal(r, results[0]) for r in results)
    threads(2)
    with pytest.raises(IndexError, match="100003"):
        ops.permute(torch.arange(100_004), 100_003, keys(0))


def deviations(counts, expected, freedom):
    """How far a chi-square statistic is from its mean, in standard deviations."""
    return (((counts - expected) ** 2 / expected).sum().item() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [*range(1, 71), 127, 128, 129, 1023, 1024, 1025, 65535, 65536, 65537, 100_003])
def test_each_number_once(n):
    assert torch.equal(permutation(n, seed=n).sort().values, torch.arange(n))


def test_any_part_alone_gives_the_same_values(backend):
    whole, n = permutation(10_007), 10_007
    for part in (torch.arange(1), torch.arange(17, 5000), torch.tensor([n - 1, 3, 3]), torch.arange(0)):
        assert torch.equal(ops.permute(part, n, keys(0)), whole[part])


@pytest.mark.parametrize("n", [10**8, (1 << 33) + 1, 10**12])
def test_great_lengths_stay_within_them_and_spread_evenly(n):
    values = ops.permute(torch.arange(n - 50_000, n), n, keys(0))
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
    seeds = 500
    drawn = torch.stack([permutation(n, seed) for seed in range(seeds)])
    at = torch.bincount((torch.arange(n) * n + drawn).flatten(), minlength=n * n).double()
    assert deviations(at, seeds / n, (n - 1) ** 2) < 5
    steps = (drawn[:, 1:] - drawn[:, :-1]).remainder(n).flatten()
    assert deviations(torch.bincount(steps, minlength=n)[1:].double(), len(steps) / (n - 1), n - 2) < 5
    pairs = torch.bincount(drawn[:, 0] * n + drawn[:, n // 2], minlength=n * n).double().view(n, n)
    different = ~torch.eye(n, dtype=torch.bool)
    assert deviations(pairs[different], seeds / (n * (n - 1)), n * (n - 1) - 1) < 5


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


def test_the_same_keys_give_the_same_permutation_and_others_another():
    assert torch.equal(permutation(1000, 3), permutation(1000, 3))
    assert not torch.equal(permutation(1000, 3), permutation(1000, 4))
