"""subset_weights: unbiased, exact to float32's rounding on every backend, finite whatever the noise."""

from itertools import combinations

import numpy as np
import pytest
import torch
from helpers import exponential, same_bits
from ops.scores import INF, NAN, special_rows

from ausam_ext import ops

LEAST = 2.0**-60


def race(scores, s_min, s_max):
    """Eq. 8's weights of one row in numpy's float32, as subset_sample's oracle has them."""
    f = np.float32
    g = scores.to(torch.float32).numpy().copy()
    with np.errstate(all="ignore"):
        visited = np.isfinite(g)
        low = g[visited].min() if visited.any() else f(0)
        high = g[visited].max() if visited.any() else f(0)
        g[~visited] = high
        width = min(high - low, np.finfo(f).max)
        ratio = np.minimum(g - low, np.finfo(f).max) / width if low < high else np.zeros_like(g)
        return ratio * f(s_max - s_min) + f(s_min)


def oracle(scores, positions, noise, s_min, s_max):
    """The formula, in float64 from the weights and keys on."""
    n, k = scores.shape[-1], positions.shape[-1]
    rows = []
    for g, at, e in zip(scores.view(-1, n), positions.reshape(-1, k), noise.reshape(-1, n), strict=True):
        s = race(g, s_min, s_max)
        with np.errstate(all="ignore"):
            key = s / e.numpy()
            key[at.numpy()] = 0
            t = max(0.0, *key[~np.isnan(key)].astype(float))
            p = -np.expm1(-s[at.numpy()].astype(float) / t)
        rows.append(k / n / np.where(p > LEAST, p, LEAST))
    return torch.from_numpy(np.array(rows)).view(positions.shape)


def assert_exact(got, scores, positions, noise, s_min=0.1, s_max=1.0):
    assert got.dtype == torch.float32 and got.shape == positions.shape
    assert got.isfinite().all() and (got > 0).all()
    expected = oracle(scores, positions, noise, s_min, s_max)
    torch.testing.assert_close(got.double(), expected, rtol=5e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0, 0.3, 0.999, 1])
@pytest.mark.parametrize("n", [1, 2, 17, 128, 1021])
def test_against_float64(backend, n, share, dtype):
    scores, noise, k = special_rows(n).to(dtype), exponential(12, n, seed=n), max(1, int(share * n))
    positions = ops.subset_sample(scores, k, s_max=0.7, noise=noise)
    got = ops.subset_weights(scores, positions, noise, s_max=0.7)
    assert_exact(got, scores, positions, noise, s_max=0.7)
    if k == n:
        assert (got == 1).all()


@pytest.mark.parametrize(("n", "k"), [(4096, 1000), (4097, 4096), (9001, 9001), (33000, 5000)])
def test_large_rows_against_float64(backend, n, k):
    scores, noise = special_rows(n)[[0, 4]], exponential(2, n)
    positions = torch.stack([torch.randperm(n)[:k].sort().values for _ in range(2)])
    assert_exact(ops.subset_weights(scores, positions, noise), scores, positions, noise)


def expected_weights(scores, k, s_min=0.1, s_max=1.0, nodes=120):
    """``E[w_i 1(i is chosen)] n / k`` for every i, integrated over what decides, with the weights of the
    operator.

    ``i`` is chosen if ``e_i / s_i`` is below the smallest of those that are not chosen. So for each subset
    and each sample outside, that this is the first one outside, at ``tau``.
    """
    n = len(scores)
    s = torch.from_numpy(race(scores, s_min, s_max)).double()
    x, dx = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))
    x, dx = (x + 1) / 2, dx / 2
    tau, dtau = 2 * x / (1 - x), 2 * dx / (1 - x) ** 2  # from 0 to infinity
    subsets, noise, density = [], [], []
    for subset in combinations(range(n), k):
        for first in set(range(n)) - set(subset):
            others = [j for j in range(n) if j != first and j not in subset]
            e = torch.full((nodes, n), INF)
            e[:, list(subset)] = 1e-30
            e[:, first] = (s[first] * tau).float()
            chance = s[first] * torch.exp(-(s[first] + s[others].sum()) * tau)
            density.append(chance * (1 - torch.exp(-s[list(subset)] * tau[:, None])).prod(1) * dtau)
            subsets.append(torch.tensor(subset).expand(nodes, k))
            noise.append(e)
    positions, density = torch.cat(subsets), torch.cat(density)
    w = ops.subset_weights(
        scores.expand(len(positions), n), positions, torch.cat(noise), s_min=s_min, s_max=s_max
    )
    mean = torch.zeros(n, dtype=torch.float64)
    mean.index_add_(0, positions.flatten(), (w.double() * density[:, None]).flatten())
    assert density.sum().item() == pytest.approx(1, abs=1e-6)
    return mean * n / k


ROWS = {
    "random": [0.31, 0.92, 0.11, 0.57, 0.75, 0.23],
    "tied": [0.2, 0.8, 0.8, 0.2, 0.8, 0.5],
    "one never visited": [0.31, NAN, 0.11, 0.57, 0.05, 0.23],
    "all but one never visited": [NAN, NAN, 0.11, NAN, NAN, NAN],
    "equal": [0.4] * 6,
}


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("row", ROWS)
def test_unbiased_by_quadrature(backend, row, k):
    n = 6 if backend != "cuda-emulated" and k != 5 else k + 1
    mean = expected_weights(torch.tensor(ROWS[row][:n]), min(k, n - 1), nodes=60)
    torch.testing.assert_close(mean, torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-5)


def test_the_quadrature_can_tell_weights_apart(monkeypatch):
    weights = ops.subset_weights

    def plain(*args, **options):
        return torch.ones_like(weights(*args, **options))

    monkeypatch.setattr(ops, "subset_weights", plain)
    mean = expected_weights(torch.tensor(ROWS["random"]), 3)
    assert mean.min() < 0.5 and mean.max() > 1.3


@pytest.mark.parametrize(("n", "k"), [(20, 1), (20, 7), (20, 19)])
def test_unbiased_by_draws(backend, n, k):
    draws, k = (3000, min(k, 9)) if backend == "cuda-emulated" else (1_000_000, k)
    scores = torch.rand(n, generator=torch.Generator().manual_seed(3))
    scores[4], scores[7] = NAN, scores[8]
    rows, noise = scores.expand(draws, n), exponential(draws, n, seed=5)
    positions = ops.subset_sample(rows, k, noise=noise)
    w = ops.subset_weights(rows, positions, noise).double().flatten() * (n / k)
    at = positions.flatten()
    mean, square = (torch.zeros(n, dtype=torch.float64).index_add_(0, at, x) / draws for x in (w, w * w))
    error = ((square - mean**2) / draws).sqrt()
    assert ((mean - 1).abs() < 5 * error).all(), (mean - 1) / error
    plain = torch.zeros(n, dtype=torch.float64).index_add_(0, at, torch.full_like(w, n / k)) / draws
    assert k == 19 or (plain - 1).abs().max() > 0.3  # unweighted, they are not


def test_finite_and_positive_for_scores_a_million_apart(backend):
    scores = torch.tensor([1e-6, 1.0, 1e6, 1e-6, 3.0, 1e5]).repeat(3).expand(200, 18)
    noise = exponential(200, 18)
    for s_min in (0.1, 1e-6, 1e-12):
        for k in (1, 9, 17):
            positions = ops.subset_sample(scores, k, s_min=s_min, noise=noise)
            got = ops.subset_weights(scores, positions, noise, s_min=s_min)
            assert_exact(got, scores, positions, noise, s_min)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1e-45, 1e-38, 3e38, INF, NAN, -1.0, -INF], ids=lambda v: f"noise {v}"
)
def test_finite_and_positive_for_any_noise(backend, value):
    n = 12
    scores, noise = torch.rand(3, n), exponential(3, n)
    noise[0, 0], noise[1, : n // 2 + 1], noise[2] = value, value, value
    for k in (1, n // 2, n - 1, n):
        positions = ops.subset_sample(scores, k, noise=noise)
        got = ops.subset_weights(scores, positions, noise)
        assert_exact(got, scores, positions, noise)
        assert got.sum(-1).isfinite().all()


def test_one_that_is_sure_of_its_place_weighs_k_of_n_and_ties_for_no_reason_weigh_alike(backend):
    scores, noise = torch.rand(4), torch.tensor([1.0, 2.0, INF, INF])
    assert ops.subset_weights(scores, torch.tensor([0, 1]), noise).tolist() == [0.5, 0.5]
    got = ops.subset_weights(scores, torch.tensor([0, 1]), torch.zeros(4))
    assert got[0] == got[1] == 0.5 / LEAST


def test_only_the_largest_key_that_is_not_among_the_positions_counts(backend):
    """In any order, also of positions that no race would have chosen."""
    scores, noise = torch.rand(5, 40), exponential(5, 40)
    positions = torch.stack([torch.randperm(40)[:9] for _ in range(5)])
    got = ops.subset_weights(scores, positions, noise)
    assert_exact(got, scores, positions, noise)
    assert same_bits(ops.subset_weights(scores, positions.flip(-1), noise).flip(-1), got)


@pytest.mark.parametrize("shape", [(7,), (6, 31), (2, 3, 8), (0, 5), (2, 5000)])
def test_leading_dimensions_are_rows_of_their_own(backend, shape):
    scores, noise = torch.rand(shape), exponential(*shape)
    positions = ops.subset_sample(scores, shape[-1] // 2, noise=noise)
    got = ops.subset_weights(scores, positions, noise)
    assert got.shape == positions.shape
    parts = (x.reshape(-1, x.shape[-1]) for x in (scores, positions, noise, got))
    for g, at, e, w in zip(*parts, strict=True):
        assert same_bits(ops.subset_weights(g, at, e), w)


def test_strided_inputs(backend):
    scores, noise = torch.rand(40, 6).t(), exponential(6, 80)[:, ::2]
    positions = ops.subset_sample(scores, 11, noise=noise)
    expected = ops.subset_weights(scores.contiguous(), positions, noise.contiguous())
    assert same_bits(ops.subset_weights(scores, positions.t().contiguous().t(), noise), expected)


def test_a_position_outside_its_row(backend):
    scores, noise, positions = torch.rand(2, 6), exponential(2, 6), torch.tensor([[0, 6, 3], [1, 2, -1]])
    if backend.startswith("cuda"):
        got = ops.subset_weights(scores, positions, noise)
        inside = torch.tensor([[True, False, True], [True, True, False]])
        assert torch.equal(got.isnan(), ~inside) and (got[inside] > 0).all()
        return
    with pytest.raises(IndexError, match=r"^positions: 6 is outside a row of 6 scores; expected 0 <= "):
        ops.subset_weights(scores, positions, noise)


@pytest.mark.parametrize("shape", [(3, 100000), (3000, 33)])
def test_the_same_bits_for_any_number_of_threads(threads, shape):
    scores, noise = torch.rand(shape), exponential(*shape)
    positions = ops.subset_sample(scores, shape[-1] // 3, noise=noise)
    results = []
    for n in (1, 2, 3, 7):
        threads(n)
        results.append(ops.subset_weights(scores, positions, noise))
    assert all(same_bits(w, results[0]) for w in results)
