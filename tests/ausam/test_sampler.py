"""AUSAMBatchSampler: its plan, the same choice within the loop, the ramp of s_max."""

import math

import pytest
import torch
from ausam.tables import N, dataset, epoch_of, pretend_losses, scored
from torch.utils.data import DataLoader

from ausam_ext import ADLP, AUSAMBatchSampler, ops, reference


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 32, 203, 500])
def test_full_epochs_are_permutations_cut_into_batches(shuffle, drop_last, batch_size):
    batches = AUSAMBatchSampler(scored(), batch_size, full_epochs=3, shuffle=shuffle, drop_last=drop_last)
    epochs = [epoch_of(batches, e) for e in range(3)]
    whole = N // batch_size
    for rows in epochs:
        assert len(rows) == len(batches) == (whole if drop_last else math.ceil(N / batch_size))
        assert all(len(row) == batch_size for row in rows[:whole])
        flat = [i for row in rows for i in row]
        assert len(flat) == (whole * batch_size if drop_last else N)
        if shuffle:
            assert sorted(flat) == sorted(set(flat)) and set(flat) <= set(range(N))
        else:
            assert flat == list(range(len(flat)))
    if whole:
        assert (epochs[0] != epochs[1]) == shuffle


@pytest.mark.parametrize(
    ("alpha", "size", "kept"),
    [
        (0.5, 128, 64),
        (0.29, 100, 29),
        (0.58, 200, 116),
        (0.5, 5, 2),
        (0.01, 10, 2),
        (0.5, 3, 2),
        (0.5, 2, 2),
        (0.5, 1, 1),
        (1.0, 10, 10),
        (0.999, 10, 9),
    ],
)
def test_number_of_samples_kept(alpha, size, kept):
    batches = AUSAMBatchSampler(scored(2 * size), size, alpha)
    assert [len(row) for row in epoch_of(batches, 1)] == [kept, kept]


def test_the_last_batch_keeps_its_own_share():
    batches = AUSAMBatchSampler(scored(), 64, 0.5)
    assert [len(row) for row in epoch_of(batches, 4)] == [32, 32, 32, 5]  # 203 - 192 = 11 samples


@pytest.mark.parametrize("rest", [1, 2, 3])
def test_batch_norm_trains_on_a_short_last_batch_as_without_a_choice(rest):
    batches = AUSAMBatchSampler(scored(8 + rest), 8, 0.25, full_epochs=0)
    assert [len(row) for row in epoch_of(batches, 1)] == [2, min(2, rest)]
    norm = torch.nn.BatchNorm1d(3)
    for row in epoch_of(batches, 2)[: 1 if rest == 1 else 2]:  # one sample is one too few in any case
        norm(torch.randn(len(row), 3))
    assert len(batches.select(torch.arange(rest))) == min(2, rest)


def test_batches_keep_their_candidates_and_a_permutation_of_their_own():
    adlp = scored()
    everything = AUSAMBatchSampler(adlp, 64, 1.0, seed=5)
    half = AUSAMBatchSampler(adlp, 64, 0.5, seed=5)
    for epoch in (1, 2, 40):
        for candidates, kept in zip(epoch_of(everything, epoch), epoch_of(half, epoch), strict=True):
            positions = [candidates.index(i) for i in kept]
            assert positions == sorted(positions)
    assert epoch_of(half, 1) != epoch_of(half, 2)
    assert epoch_of(AUSAMBatchSampler(adlp, 64, 0.5, seed=6), 1) != epoch_of(half, 1)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_plan_equals_select_for_any_number_of_workers(backend, workers):
    planned, looped = ADLP(N), ADLP(N)
    options = {"batch_size": 32, "alpha": 0.4, "warmup_epochs": 3, "seed": 11}
    batches = AUSAMBatchSampler(planned, **options)
    loader = DataLoader(
        dataset(), batch_sampler=batches, num_workers=workers, prefetch_factor=5 if workers else None
    )
    chooser = AUSAMBatchSampler(looped, **options)
    whole = DataLoader(dataset(), batch_sampler=AUSAMBatchSampler(ADLP(N), 32, 1.0, seed=11))
    for epoch in range(3 if workers else 6):
        for b in (batches, chooser, whole.batch_sampler):
            b.set_epoch(epoch)
        pairs = zip(batches.indexed(loader), whole, strict=True)
        for (index, (x, y)), (candidates, _) in pairs:
            assert torch.equal(index, x) and torch.equal(y, x * 10)
            keep = chooser.select(candidates)
            assert torch.equal(candidates[keep], index)
            planned.update(index, *pretend_losses(index, epoch))
            looped.update(candidates[keep], *pretend_losses(index, epoch))
    assert torch.equal(planned.total, looped.total) and planned.count.max() > planned.count.min()


def test_the_choice_is_made_on_the_mean_dlp_with_the_ramp_of_s_max(monkeypatch):
    adlp, seen = scored(), []
    batches = AUSAMBatchSampler(adlp, 64, 0.5, s_min=0.1, s_max=0.5, warmup_epochs=30, shuffle=False)
    sample = ops.subset_sample

    def spy(scores, k, **options):
        seen.append((options["s_max"], scores, k, options["noise"]))
        return sample(scores, k, **options)

    monkeypatch.setattr(ops, "subset_sample", spy)
    for epoch, s_max in ((1, 0.1 + 0.4 / 30), (15, 0.3), (30, 0.5), (200, 0.5)):
        seen.clear()
        rows = epoch_of(batches, epoch)
        assert len(seen) == 2  # one call for the full batches, one for the last
        order = torch.arange(N).split([192, N - 192])
        for (got, scores, k, noise), index in zip(seen, order, strict=True):
            index = index.view(scores.shape)
            torch.testing.assert_close(scores, adlp.mean()[index], rtol=0, atol=0, equal_nan=True)
            assert got == pytest.approx(s_max, rel=1e-12)
            expected = reference.subset_sample(adlp.mean()[index], k, s_min=0.1, s_max=got, noise=noise)
            for candidates, positions in zip(index, expected, strict=True):
                assert candidates[positions].tolist() == rows.pop(0)
    no_ramp = AUSAMBatchSampler(adlp, 64, warmup_epochs=0)
    seen.clear()
    epoch_of(no_ramp, 1)
    assert seen[0][0] == 1.0


def s_max_of(monkeypatch, epoch, **options):
    seen, sample = [], ops.subset_sample

    def spy(*args, s_max, **options):
        seen.append(s_max)
        return sample(*args, s_max=s_max, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ops, "subset_sample", spy)
        epoch_of(AUSAMBatchSampler(scored(), 64, s_min=0.1, s_max=1.1, **options), epoch)
    return seen[0]


def test_the_ramp_may_take_a_share_of_the_run(monkeypatch):
    for epoch, share in ((1, 0.25), (3, 0.75), (4, 1), (9, 1)):
        got = s_max_of(monkeypatch, epoch, epochs=10, warmup_epochs=0.4)
        assert got == pytest.approx(0.1 + share)
    assert s_max_of(monkeypatch, 1, epochs=10, warmup_epochs=4) == pytest.approx(0.1 + 0.25)
    assert s_max_of(monkeypatch, 1, epochs=1, warmup_epochs=0.5) == pytest.approx(1.1)


def test_a_run_that_ends_before_s_max_is_reached_is_told():
    with pytest.warns(
        UserWarning, match=r"s_max is reached in epoch warmup_epochs = 30, and the run ends after 10"
    ):
        AUSAMBatchSampler(scored(), 64, epochs=10)
    AUSAMBatchSampler(scored(), 64, epochs=31)
    AUSAMBatchSampler(scored(), 64, epochs=1, warmup_epochs=0)


def test_high_scores_are_kept_more_often():
    adlp = ADLP(256)
    adlp.update(torch.arange(256), torch.zeros(256), torch.arange(256.0))
    kept = torch.zeros(256)
    batches = AUSAMBatchSampler(adlp, 64, 0.5, warmup_epochs=0)
    for epoch in range(1, 201):
        for row in epoch_of(batches, epoch):
            kept[row] += 1
    share = kept / 200
    assert share[:64].mean() < 0.4 < 0.6 < share[-64:].mean()
    assert share.min() > 0.05  # and none is overlooked


def test_select_keeps_whole_batches_in_full_epochs_and_accepts_int32():
    batches = AUSAMBatchSampler(scored(), 32)
    assert torch.equal(batches.select(torch.arange(20, dtype=torch.int32)), torch.arange(20))
    batches.set_epoch(1)
    assert len(batches.select(torch.arange(20, dtype=torch.int32))) == 10
