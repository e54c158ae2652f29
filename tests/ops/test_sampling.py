"""subset_sample and adlp_sample: bitwise parity, torch.multinomial's subsets, inclusion probabilities."""

from itertools import permutations

import numpy as np
import pytest
import torch
from helpers import exponential
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ops.scores import INF, NAN, special_rows

from ausam_ext import ops, reference


def oracle(scores, k, s_min, s_max, noise):
    """Eq. 7 and 8 once more: numpy's float32 scalars, one row at a time, a stable sort by (key, position)."""
    f = np.float32
    rows = scores.reshape(-1, scores.shape[-1]).to(torch.float32).numpy()
    picks = []
    with np.errstate(all="ignore"):
        for g, e in zip(rows, noise.reshape(rows.shape).numpy(), strict=True):
            visited = np.isfinite(g)
            low = g[visited].min() if visited.any() else f(0)
            high = g[visited].max() if visited.any() else f(0)
            width = min(high - low, np.finfo(f).max)
            keys = []
            for j in range(len(g)):
                score = g[j] if visited[j] else high
                ratio = min(score - low, np.finfo(f).max) / width if low < high else f(0)
                keys.append(f(f(ratio * f(s_max - s_min)) + f(s_min)) / e[j])
            picks.append(sorted(sorted(range(len(g)), key=lambda j: (-keys[j], j))[:k]))
    return torch.tensor(picks, dtype=torch.int64).reshape(*scores.shape[:-1], k)


# From 4,097 on many blocks share a row.
@pytest.mark.parametrize("n", [1, 2, 3, 17, 128, 1021, 4096, 4097, 33000])
@pytest.mark.parametrize("share", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_subset_as_the_oracle_bit_for_bit(backend, n, share, dtype):
    scores, noise, k = special_rows(n).to(dtype), exponential(12, n, seed=n), max(1, int(share * n))
    if n > 4000:
        scores, noise = scores[[0, 2, 4, 10]], noise[:4]
    got = ops.subset_sample(scores, k, s_min=0.1, s_max=0.7, noise=noise)
    assert got.dtype == torch.int64
    assert torch.equal(got, oracle(scores, k, 0.1, 0.7, noise))


@pytest.mark.parametrize("n", [5, 128, 40000])
def test_equal_keys_go_to_the_lower_position(backend, n):
    noise = torch.ones(2, n)
    got = ops.subset_sample(torch.full((2, n), 0.5), n // 2, noise=noise)
    assert torch.equal(got, torch.arange(n // 2).expand(2, -1))


@pytest.mark.parametrize("n", [40, 4096, 9000])
@pytest.mark.parametrize("digits", [2, 8, 14, 23])
def test_keys_that_differ_in_their_last_bits(backend, n, digits):
    """Between two far away from them: whatever tells keys apart has to go down to the last bit."""
    noise = 1 + torch.randint(0, 2**digits, (2, n)) * 2.0**-23
    noise[:, 3], noise[:, n // 2] = 1e-30, 1e30
    scores = torch.full((2, n), 0.5)
    for k in (1, n // 2, n - 1):
        got = ops.subset_sample(scores, k, s_max=0.7, noise=noise)
        assert torch.equal(got, oracle(scores, k, 0.1, 0.7, noise))


@pytest.mark.parametrize("n", [40, 40000])
def test_noise_out_of_the_ordinary_orders_the_same_everywhere(n):
    noise = exponential(n)
    noise[:6] = torch.tensor([0.0, -INF, NAN, -1.0, -0.0, INF])
    scores = torch.rand(n)
    for k in (1, 3, n // 2, n - 4, n - 1, n):  # n - 4: one of two keys 0, whose signs differ
        got = ops.subset_sample(scores, k, noise=noise)
        assert torch.equal(got, reference.subset_sample(scores, k, s_min=0.1, s_max=1.0, noise=noise))


@given(
    scores=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=40),
        elements=st.floats(width=32) | st.sampled_from([0.0, 1.0, NAN, INF]),
    ),
    share=st.floats(0, 1),
    s_min=st.floats(1e-6, 1),
    span=st.sampled_from([0.0, 0.3, 1e3]),
    seed=st.integers(0, 2**32),
)
def test_parity_on_any_scores(scores, share, s_min, span, seed):
    scores = torch.from_numpy(scores)
    k = max(1, int(share * scores.shape[-1]))
    noise = exponential(*scores.shape, seed=seed)
    got = ops.subset_sample(scores, k, s_min=s_min, s_max=s_min + span, noise=noise)
    expected = reference.subset_sample(scores, k, s_min=s_min, s_max=s_min + span, noise=noise)
    assert torch.equal(got, expected)


def test_the_same_generator_gives_the_subset_of_torch_multinomial(backend):
    for seed in range(50):
        scores = torch.rand(4, 97)
        low = scores.amin(-1, keepdim=True)
        weights = (scores - low) / (scores.amax(-1, keepdim=True) - low) * (0.8 - 0.1) + 0.1
        theirs = torch.multinomial(weights, 41, generator=torch.Generator().manual_seed(seed))
        ours = ops.subset_sample(scores, 41, s_max=0.8, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(ours, theirs.sort(-1).values)


def test_inclusion_probabilities_match_enumeration(backend):
    """Successive sampling of 3 of 5 with probabilities proportional to the weights, all orders enumerated."""
    scores, k = torch.tensor([0.0, 0.1, 0.4, 0.7, 1.0]), 3
    draws = 4000 if backend == "cuda-emulated" else 40000
    w = (scores * 0.9 + 0.1).double().tolist()
    exact = np.zeros(5)
    for order in permutations(range(5), k):
        p, left = 1.0, sum(w)
        for j in order:
            p, left = p * w[j] / left, left - w[j]
        exact[list(order)] += p
    picks = ops.subset_sample(scores.expand(draws, 5), k, noise=exponential(draws, 5, seed=1))
    seen = np.bincount(picks.flatten().numpy(), minlength=5) / draws
    assert np.abs(seen - exact).max() < 5 * 0.5 / np.sqrt(draws)  # five standard errors of a share
    assert exact.max() - exact.min() > 0.4  # the test can tell weights apart


def test_never_visited_counts_as_the_highest_score(backend):
    scores, noise = torch.rand(64, 20), exponential(64, 20)
    filled = scores.clone()
    scores[:, 3], filled[:, 3] = NAN, torch.cat([filled[:, :3], filled[:, 4:]], 1).amax(1)
    assert torch.equal(ops.subset_sample(scores, 9, noise=noise), ops.subset_sample(filled, 9, noise=noise))


def test_weights_follow_s_min_and_s_max(backend):
    """With equal noise the race is decided only by the weights; s_min = s_max makes them all equal."""
    scores = torch.tensor([0.3, 0.9, 0.1, 0.5])
    ones = torch.ones(4)
    assert ops.subset_sample(scores, 2, noise=ones).tolist() == [1, 3]
    assert ops.subset_sample(scores, 2, s_min=0.4, s_max=0.4, noise=ones).tolist() == [0, 1]


@pytest.mark.parametrize("table_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(1,), (13,), (6, 31), (2, 3, 8), (0, 5), (35000,)])
def test_adlp_sample_is_subset_sample_of_the_means(backend, table_dtype, index_dtype, shape):
    total = torch.rand(50, dtype=table_dtype) * 3
    count = torch.randint(0, 4, (50,), dtype=torch.int32)  # some never visited
    total[7] = INF
    index = torch.randint(0, 50, shape, dtype=index_dtype)
    noise, k = exponential(*shape), max(1, shape[-1] // 2)
    got = ops.adlp_sample(total, count, index, k, noise=noise)
    means = total[index.long()] / count[index.long()]
    assert torch.equal(got, oracle(means, k, 0.1, 1.0, noise))
    assert (got.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("table_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(1,), (13,), (6, 31), (2, 3, 8), (35000,)])
def test_a_sample_tried_in_vain_scores_0(backend, table_dtype, index_dtype, shape):
    total = torch.rand(50, dtype=table_dtype) * 3 + 1  # 0 is the lowest
    count = torch.randint(0, 3, (50,), dtype=torch.int32)
    total[count == 0] = 0
    tried = torch.randint(0, 2, (50, 2), dtype=torch.uint8)[:, 1]  # with and without a finite DLP
    index = torch.randint(-1, 51, shape, dtype=index_dtype)
    inside = (index >= 0) & (index < 50)
    i = index.where(inside, 0).long()
    scores = (total[i] / count[i]).where(inside, NAN)
    scores[inside & (count[i] == 0) & (tried[i] == 1)] = 0
    noise, k = exponential(*shape), max(1, shape[-1] // 2)
    before, invalid = tried.clone(), torch.zeros((), dtype=torch.int32)
    got = ops.adlp_sample(total, count, index, k, noise=noise, invalid=invalid, tried=tried)
    assert torch.equal(got, oracle(scores, k, 0.1, 1.0, noise))
    assert torch.equal(tried, before) and invalid.item() == (~inside).sum()


def test_strided_inputs(backend):
    scores, noise = torch.rand(40, 6).t(), exponential(6, 80)[:, ::2]
    expected = ops.subset_sample(scores.contiguous(), 11, noise=noise.contiguous())
    assert torch.equal(ops.subset_sample(scores, 11, noise=noise), expected)
    table = torch.rand(50, 2)
    count = torch.ones(100, dtype=torch.int32)[::2]
    index = torch.randint(0, 50, (40, 6)).t()
    expected = ops.adlp_sample(table[:, 1].clone(), count.clone(), index.contiguous(), 11, noise=noise)
    assert torch.equal(ops.adlp_sample(table[:, 1], count, index, 11, noise=noise), expected)


def test_index_outside_is_counted_and_scores_as_never_visited(backend):
    total, count = torch.rand(10), torch.ones(10, dtype=torch.int32)
    index = torch.tensor([[0, 1, -1, 3, 10, 5], [0, 1, 2, 3, 4, 5]])
    noise, invalid = exponential(2, 6), torch.tensor(5, dtype=torch.int32)
    got = ops.adlp_sample(total, count, index, 3, noise=noise, invalid=invalid)
    scores = total[index.clamp(0, 9)]
    scores[0, 2] = scores[0, 4] = NAN
    assert torch.equal(got, oracle(scores, 3, 0.1, 1.0, noise))
    assert invalid.item() == 7


def test_an_empty_table_is_never_visited(backend):
    total, count = torch.empty(0), torch.empty(0, dtype=torch.int32)
    invalid = torch.zeros((), dtype=torch.int32)
    got = ops.adlp_sample(total, count, torch.arange(6), 2, noise=torch.ones(6), invalid=invalid)
    assert got.tolist() == [0, 1] and invalid.item() == 6


@pytest.mark.parametrize("shape", [(3, 100000), (3000, 33)])
def test_the_subset_does_not_depend_on_the_number_of_threads(threads, shape):
    scores, noise = torch.rand(shape), exponential(*shape)
    scores[0], noise[0] = scores[0].round(decimals=2), 1  # ties at the threshold, split between threads
    picks = []
    for n in (1, 2, 3, 7):
        threads(n)
        picks.append(ops.subset_sample(scores, shape[-1] // 3, noise=noise))
    assert all(torch.equal(p, picks[0]) for p in picks)
    assert torch.equal(
        picks[0], reference.subset_sample(scores, shape[-1] // 3, s_min=0.1, s_max=1.0, noise=noise)
    )
