"""dlp, adlp_update_ and sliced_variance."""

import statistics

import pytest
import torch
from helpers import FLOATING, TABLE, assert_error_at_most_twice, same_bits
from hypothesis import given
from hypothesis import strategies as st

from ausam_ext import ops, reference

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (127,), (13, 7), (70001,)])
def test_dlp(backend, dtype, shape):
    a, b = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    d = ops.dlp(a, b)
    assert d.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert d.shape == shape and d.is_contiguous()
    if d.numel():
        assert_error_at_most_twice(d, (b - a).abs(), (b.double() - a.double()).abs())


def test_dlp_of_strided_losses(backend):
    a, b = torch.randn(20, 6).t(), torch.randn(12, 20)[::2]
    assert torch.equal(ops.dlp(a, b), (b - a).abs())


def visits(total, count, index, loss, loss_perturbed):
    """Eq. 5 and 6 in Python, one visit after the other, in float64."""
    total, count = total.double().tolist(), count.tolist()
    for i, a, b in zip(index.tolist(), loss.double().tolist(), loss_perturbed.double().tolist(), strict=True):
        d = abs(b - a)
        if 0 <= i < len(total) and d < INF:
            total[i] += d
            count[i] += 1
    return torch.tensor(total, dtype=torch.float64), torch.tensor(count, dtype=torch.int32)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("table_dtype", TABLE)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("n", [0, 1, 127, 40009])
def test_update(backend, dtype, table_dtype, index_dtype, n):
    samples = 53
    total, count = torch.rand(samples, dtype=table_dtype), torch.randint(0, 9, (samples,), dtype=torch.int32)
    index = torch.randint(0, samples, (n,), dtype=index_dtype)  # duplicates: each is a visit
    a, b = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    a[:3], b[2:4] = torch.tensor([NAN, INF, -INF])[:n], INF  # not recorded
    exact_total, exact_count = visits(total, count, index, a, b)
    plain = total.clone()
    d = reference.dlp(a, b).to(table_dtype)
    plain.index_add_(0, index, d.where(d.isfinite(), 0))
    ops.adlp_update_(total, count, index, a, b)
    assert_error_at_most_twice(total, plain, exact_total)
    assert torch.equal(count, exact_count)


@pytest.mark.parametrize("table_dtype", TABLE)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 256, 1000, 1024])
@pytest.mark.parametrize("samples", [3, 5000])
def test_repeated_samples_are_added_in_the_order_of_their_visits(backend, table_dtype, n, samples):
    """To the last bit, in batches of up to 1,024; others have the same lower 32 bits of the index."""
    total, count = torch.rand(samples, dtype=table_dtype), torch.zeros(samples, dtype=torch.int32)
    index = torch.randint(0, samples, (n,))
    index[torch.rand(n) < 0.2] += 2**32
    a, b = torch.randn(n), torch.randn(n)
    invalid, expected, visited = torch.zeros((), dtype=torch.int32), total.numpy().copy(), count.clone()
    for i, d in zip(index.tolist(), (b - a).abs().numpy(), strict=True):
        if i < samples:
            expected[i] += d.astype(expected.dtype)
            visited[i] += 1
    ops.adlp_update_(total, count, index, a, b, invalid=invalid)
    assert same_bits(total, torch.from_numpy(expected)) and torch.equal(count, visited)
    assert invalid == (index >= samples).sum()


def test_update_is_the_same_sum_on_every_backend_and_number_of_threads(threads):
    samples, n = 977, 200_000
    index, a, b = torch.randint(0, samples, (n,)), torch.randn(n), torch.randn(n)
    tables = []
    for run in (1, 2, 5, 8, "reference"):
        total, count = torch.zeros(samples), torch.zeros(samples, dtype=torch.int32)
        if run == "reference":
            reference.adlp_update_(total, count, index, a, b)
        else:
            threads(run)
            ops.adlp_update_(total, count, index, a, b)
        tables.append((total, count))
    assert all(same_bits(t, tables[0][0]) and torch.equal(c, tables[0][1]) for t, c in tables)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("table_dtype", TABLE)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("n", [0, 1, 127, 1025, 40009])
def test_update_marks_what_it_does_not_record(backend, dtype, table_dtype, index_dtype, n):
    samples = 53
    table = torch.rand(samples, dtype=table_dtype), torch.randint(0, 9, (samples,), dtype=torch.int32)
    index = torch.randint(-1, samples + 1, (n,), dtype=index_dtype)
    a, b = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    never = index % 3 == 0  # many visits of one sample, so that several threads mark it
    a[never] = torch.tensor([NAN, INF, -INF])[torch.randint(0, 3, (int(never.sum()),))].to(dtype)
    b[-3:] = NAN
    failed = ~(b.double() - a.double()).isfinite()
    both = torch.zeros(samples, 2, dtype=torch.uint8)
    tried = both[:, 1]
    tried[[5, 9]] = 1  # by an earlier call: stays
    expected = torch.zeros(samples, dtype=torch.uint8)
    expected[[5, 9, *(i for i in index[failed].tolist() if 0 <= i < samples)]] = 1
    invalid, recorded = torch.zeros((), dtype=torch.int32), [t.clone() for t in table]
    exact_total, exact_count = visits(*table, index, a, b)
    ops.adlp_update_(*table, index, a, b, invalid=invalid, tried=tried)
    ops.adlp_update_(*recorded, index, a, b, invalid=invalid)
    assert torch.equal(tried, expected) and not both[:, 0].any()
    assert torch.equal(table[1], exact_count) and torch.equal(recorded[1], exact_count)
    torch.testing.assert_close(table[0].double(), exact_total, rtol=1e-5, atol=0)
    assert n > 1024 or same_bits(table[0], recorded[0])


def test_marks_do_not_depend_on_the_number_of_threads(threads):
    samples, n = 977, 200_000
    index, a, b = torch.randint(0, samples, (n,)), torch.randn(n), torch.randn(n)
    a[index % 2 == 0] = NAN
    for run in (1, 2, 5, 8):
        threads(run)
        tried = torch.zeros(samples, dtype=torch.uint8)
        ops.adlp_update_(
            torch.zeros(samples), torch.zeros(samples, dtype=torch.int32), index, a, b, tried=tried
        )
        assert torch.equal(tried, (torch.arange(samples) % 2 == 0).to(torch.uint8))


def test_a_dlp_too_large_for_the_table_is_not_recorded(backend):
    total, count, tried = torch.zeros(2), torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.uint8)
    loss = torch.zeros(2, dtype=torch.float64)
    perturbed = torch.tensor([1e300, 2.0], dtype=torch.float64)
    ops.adlp_update_(total, count, torch.tensor([0, 1]), loss, perturbed, tried=tried)
    assert total.tolist() == [0, 2] and count.tolist() == [0, 1] and tried.tolist() == [1, 0]


def test_update_of_strided_tensors(backend):
    total, count = torch.zeros(30)[::3], torch.zeros(10, 2, dtype=torch.int32)[:, 1]
    index, a, b = torch.randint(0, 10, (40,))[::2], torch.randn(20, 2)[:, 0], torch.randn(60)[::3]
    exact = visits(total, count, index, a, b)
    ops.adlp_update_(total, count, index, a, b)
    torch.testing.assert_close(total.double(), exact[0], rtol=1e-6, atol=0)
    assert torch.equal(count, exact[1])


def test_update_counts_and_skips_what_is_outside(backend):
    total, count = torch.zeros(4), torch.zeros(4, dtype=torch.int32)
    invalid = torch.tensor(10, dtype=torch.int32)
    index = torch.tensor([0, -1, 4, 3, 2**40])
    ops.adlp_update_(total, count, index, torch.zeros(5), torch.ones(5), invalid=invalid)
    assert total.tolist() == [1, 0, 0, 1] and count.tolist() == [1, 0, 0, 1] and invalid.item() == 13


def sliced(values, slices):
    """Eq. 8 with Python's exact rational statistics."""
    values, start, out = sorted(values), 0, []
    for j in range(slices):
        stop = start + len(values) // slices + (j < len(values) % slices)
        out.append(statistics.variance(values[start:stop]))
        start = stop
    return sum(out) / slices


@pytest.mark.parametrize("dtype", TABLE)
@pytest.mark.parametrize(("n", "slices"), [(2, 1), (10, 5), (50, 5), (53, 5), (11, 5), (1000, 7)])
def test_sliced_variance(backend, dtype, n, slices):
    norms = (torch.rand(n, dtype=torch.float64) * 10).to(dtype)
    exact = torch.tensor(sliced(norms.double().tolist(), slices), dtype=torch.float64)
    plain = torch.stack([part.var() for part in norms.sort().values.tensor_split(slices)]).mean()
    got = ops.sliced_variance(norms, slices)
    assert got.dtype == dtype and got.shape == ()
    assert_error_at_most_twice(got, plain, exact)


@given(st.lists(st.floats(0, 1e6), min_size=4, max_size=60), st.integers(1, 2))
def test_sliced_variance_of_any_norms(values, slices):
    got = ops.sliced_variance(torch.tensor(values, dtype=torch.float64), slices).item()
    assert got == pytest.approx(sliced(values, slices), rel=1e-9, abs=1e-12)


def test_sliced_variance_has_nothing_to_cancel(backend):
    norms = torch.tensor([1e8, 1e8 + 1, 1e8 + 2, 1e8 + 3], dtype=torch.float64)
    assert ops.sliced_variance(norms, 2).item() == 0.5


def test_sliced_variance_of_nan_is_nan_and_strides_are_followed(backend):
    norms = torch.rand(20)
    expected = ops.sliced_variance(norms[::2].clone(), 2)
    assert torch.equal(ops.sliced_variance(norms[::2], 2), expected)
    norms[4] = NAN
    assert ops.sliced_variance(norms, 2).isnan()
