"""InfoBatchSampler: which samples an epoch has, and what they weigh."""

import math

import pytest
import torch
from ausam.tables import N
from baselines.pruned import ALL, looped, losses_of, samples, scored, weights

from ausam_ext import ADLP, AUSAMBatchSampler
from ausam_ext.baselines import InfoBatchSampler


def test_the_scores_1_2_3_6_by_hand():
    """Their mean is 3, so that of W = {0, 1} one is kept, with weight 2: 4 samples weigh 4."""
    seen = set()
    for seed in range(20):
        batches = InfoBatchSampler(4, 4, epochs=200, seed=seed)
        batches.update(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 6.0]))
        batches.set_epoch(1)
        kept = samples(batches)
        assert len(kept) == len(set(kept)) == 3 and {2, 3} < set(kept) and len(batches) == 1
        expected = [2.0 if i in kept else 0.0 for i in (0, 1)] + [1.0, 1.0]
        assert weights(batches) == expected
        seen.add(tuple(expected))
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("n", "ratio"), [(1, 0.5), (2, 0.5), (203, 0.5), (1000, 0.3), (1000, 0.9), (2001, 0.25)]
)
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_as_written_down(n, ratio, shuffle, drop_last):
    batches = scored(n=n, ratio=ratio, shuffle=shuffle, drop_last=drop_last)
    scores = losses_of(0, n).tolist()
    mean = math.fsum(scores) / n
    low = {i for i, s in enumerate(scores) if s < mean}
    kept = len(low) * round((1 - ratio) * 100) // 100  # in whole numbers
    batches.set_epoch(1)
    weight = weights(batches)
    assert {weight[i] for i in range(n) if i not in low} == {1.0}
    of_low = [weight[i] for i in sorted(low)]
    assert of_low.count(0.0) == len(low) - kept
    assert all(w == pytest.approx(1 / (1 - ratio), rel=1e-7) for w in of_low if w)
    everything = [i for i in range(n) if weight[i]]
    rows = list(batches)
    whole, rest = divmod(len(everything), 32)
    assert [len(row) for row in rows] == [32] * whole + ([rest] if rest and not drop_last else [])
    assert len(rows) == len(batches)
    if not drop_last:
        assert sorted(samples(batches)) == everything
    if n > 100:
        assert (samples(batches) == everything[: len(samples(batches))]) == (not shuffle)


def test_a_share_that_is_a_whole_number_is_kept_whole():
    """(1 - .9) * 10 is .9999999999999998 in floating point, and .07 * 100 is 7.000000000000001."""
    batches = InfoBatchSampler(11, 4, epochs=100, ratio=0.9, delta=0.07)
    batches.update(torch.arange(11), torch.tensor([1.0] * 10 + [100.0]))
    for epoch, kept in ((1, 2), (6, 2), (7, 11)):
        batches.set_epoch(epoch)
        assert len(samples(batches)) == kept, epoch
    assert (1 - 0.9) * 10 < 1 and 0.07 * 100 > 7


def test_over_ten_thousand_prunings_the_weighted_sum_is_the_sum():
    """With half of m drawn, its variance is m times that of the low scores (with m - 1 as divisor)."""
    n, prunings = 61, 10_000
    batches = scored(n=n, epochs=20_000, batch_size=n, shuffle=False)
    loss = losses_of(0, n).double()
    low = loss < loss.mean()
    m = int(low.sum())
    assert m % 2 == 0
    sums, of_sample, together = torch.zeros(prunings, dtype=torch.float64), torch.zeros(n), 0
    a, b = low.nonzero()[:2, 0].tolist()
    for i in range(prunings):
        batches.set_epoch(i + 1)
        index = torch.tensor(samples(batches))
        weight = batches.weights(index)
        sums[i] = (weight * loss[index]).sum()
        of_sample[index] += weight
        together += bool((index == a).any() and (index == b).any())
    variance = m * loss[low].var().item()
    assert abs(sums.mean() - loss.sum()) < 4 * math.sqrt(variance / prunings)
    assert sums.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / prunings))
    assert (of_sample[~low] == prunings).all()
    assert ((of_sample[low] / prunings - 1).abs() < 4.5 / math.sqrt(prunings)).all()  # 2 or 0: deviation 1
    pair = (m / 2) * (m / 2 - 1) / (m * (m - 1))
    assert together / prunings == pytest.approx(pair, abs=4.5 * math.sqrt(pair * (1 - pair) / prunings))


def test_at_ratio_0_an_epoch_is_a_plain_shuffled_one():
    batches, plain = scored(ratio=0, seed=3), AUSAMBatchSampler(ADLP(N), 32, alpha=1, seed=3)
    for epoch in range(4):
        for b in (batches, plain):
            b.set_epoch(epoch)
        assert list(batches) == list(plain) and weights(batches) == [1.0] * N


def test_the_first_epoch_has_all_samples_and_so_have_those_from_delta_on():
    batches = InfoBatchSampler(N, 32, epochs=200)
    for epoch in (0, 1):  # all scores are 3
        batches.set_epoch(epoch)
        assert sorted(samples(batches)) == ALL.tolist() and weights(batches) == [1.0] * N
    batches = scored()
    assert sorted(samples(batches)) == ALL.tolist() and weights(batches) == [1.0] * N
    for epoch in (1, 174, 175, 199, 200):
        batches.set_epoch(epoch)
        if epoch < 175:
            assert len(samples(batches)) < N and len(batches) < -(-N // 32)
        else:
            assert sorted(samples(batches)) == ALL.tolist() and weights(batches) == [1.0] * N


def test_equal_scores_are_not_below_their_mean():
    batches = InfoBatchSampler(1001, 32, epochs=9)
    batches.update(torch.arange(1001), torch.full((1001,), 0.1))
    batches.set_epoch(1)
    assert len(samples(batches)) == 1001


def test_what_is_recorded_within_an_epoch_counts_in_the_next():
    batches = scored(0)
    batches.set_epoch(1)
    rows, weight, length = list(batches), weights(batches), len(batches)
    batches.update(ALL, losses_of(1))
    batches.set_epoch(1)
    assert (list(batches), weights(batches), len(batches)) == (rows, weight, length)
    # A sample that was left out keeps its score, and of two losses the last one counts.
    batches.update(ALL[:100], losses_of(2)[:100])
    twin = scored(1)
    twin.update(ALL[:100], losses_of(2)[:100])
    for b in (batches, twin):
        b.set_epoch(2)
    assert list(batches) == list(twin) != rows and weights(batches) == weights(twin)


def test_indexed_pairs_alike_for_any_number_of_workers_and_depth():
    batches, seen, scores = looped(4)
    assert batches.epoch == 4 and batches.state_dict()["scores"].tolist() == scores
    lengths = [sum(len(index) for epoch, index, _ in seen if epoch == e) for e in range(4)]
    assert lengths[0] == N > max(lengths[1:]) and len(set(lengths)) > 2
    for workers, prefetch in ((1, 1), (2, 7)):
        _, again, _ = looped(4, workers, prefetch)
        assert again == seen
