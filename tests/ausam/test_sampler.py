"""AUSAMBatchSampler: its plan, the same choice within the loop, epochs, processes, resume."""

import math

import numpy as np
import pytest
import torch
from ausam.tables import N, dataset, epoch_of, pretend_losses, scored
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

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


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"warmup_epochs": 0.3}, ValueError, r"epochs: expected the length of the run, .* got None"),
        ({"warmup_epochs": 1.0, "epochs": 10}, ValueError, "warmup_epochs: expected a number of epochs"),
        ({"warmup_epochs": 0.0, "epochs": 10}, ValueError, "warmup_epochs: .* got 0.0"),
        ({"warmup_epochs": math.nan, "epochs": 10}, ValueError, "warmup_epochs: .* got nan"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs: expected an integer at least 0, got -1"),
        ({"warmup_epochs": "1"}, TypeError, "warmup_epochs: expected a number"),
        ({"epochs": 0}, ValueError, "epochs: expected an integer at least 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs: expected an integer"),
    ],
)  # fmt: skip
def test_ramps_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        AUSAMBatchSampler(scored(), 64, **options)


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


@pytest.mark.parametrize("n", [10, 203, 7])
@pytest.mark.parametrize("replicas", [2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_an_epoch(n, replicas, drop_last):
    options = {"batch_size": 3, "num_replicas": replicas, "drop_last": drop_last, "seed": 2}
    parts = [AUSAMBatchSampler(scored(n), rank=r, **options) for r in range(replicas)]
    epochs = [epoch_of(p, 0) for p in parts]
    assert len({len(rows) for rows in epochs}) == 1  # alike: no process waits for another
    assert len(epochs[0]) == len(parts[0])
    flat = [i for rows in epochs for row in rows for i in row]
    if not drop_last:
        assert set(flat) == set(range(n)) and len(flat) == math.ceil(n / replicas) * replicas
    for rows in epochs:
        assert len({i for row in rows for i in row}) == sum(len(row) for row in rows)  # repeated elsewhere


@pytest.mark.parametrize("n", [203, 64, 65, 97])
@pytest.mark.parametrize("replicas", [2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_of_all_processes_are_of_one_length(n, replicas, drop_last):
    """What they keep as well: collective operations in the loop fit each other."""
    options = {"batch_size": 8, "num_replicas": replicas, "drop_last": drop_last, "full_epochs": 1}
    parts = [AUSAMBatchSampler(scored(n), rank=r, **options) for r in range(replicas)]
    for epoch in range(2):
        lengths = [[len(row) for row in epoch_of(p, epoch)] for p in parts]
        assert lengths[0] and all(other == lengths[0] for other in lengths)
        assert len(lengths[0]) == len(parts[0])


@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_together_processes_take_the_batches_of_one(replicas):
    """Batch j of all is batch j of one process with as many times the batch size."""
    n = 8 * replicas * 5
    one = epoch_of(AUSAMBatchSampler(ADLP(n), 8 * replicas), 0)
    parts = [
        epoch_of(AUSAMBatchSampler(ADLP(n), 8, rank=r, num_replicas=replicas), 0) for r in range(replicas)
    ]
    for batch, rows in zip(one, zip(*parts, strict=True), strict=True):
        assert [i for together in zip(*rows, strict=True) for i in together] == batch


@pytest.mark.parametrize("n", [1, 7, 64, 203])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_in_order_each_process_gets_what_distributed_sampler_gives(n, replicas):
    for rank in range(replicas):
        batches = AUSAMBatchSampler(ADLP(n), 8, shuffle=False, rank=rank, num_replicas=replicas)
        expected = DistributedSampler(range(n), replicas, rank, shuffle=False)
        assert [i for row in batches for i in row] == list(expected)


def test_more_processes_than_samples():
    parts = [AUSAMBatchSampler(ADLP(2), 4, rank=r, num_replicas=5) for r in range(5)]
    assert {len(epoch_of(p, 0)) for p in parts} == {1}


def test_without_set_epoch_epochs_follow_one_another():
    """Otherwise a loop that forgets the call would train on full batches for ever."""
    batches = AUSAMBatchSampler(scored(), 64)
    loader = DataLoader(dataset(), batch_sampler=batches)
    seen = []
    for _ in range(3):
        seen.append([index.tolist() for index, _ in batches.indexed(loader)])
    assert seen == [epoch_of(AUSAMBatchSampler(scored(), 64), e) for e in range(3)]
    assert batches.epoch == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 5, 6, 7])
def test_resumes_within_an_epoch(tmp_path, workers, stop):
    """203 samples in batches of 32: six full ones and one of 11."""

    def fresh():
        adlp = scored()
        batches = AUSAMBatchSampler(adlp, 32, warmup_epochs=4, seed=3)
        return adlp, batches, DataLoader(dataset(), batch_sampler=batches, num_workers=workers)

    def train(adlp, batches, loader, epochs, stop_at=None):
        for epoch in epochs:
            batches.set_epoch(epoch)
            for step, (index, _) in enumerate(batches.indexed(loader), 1):
                adlp.update(index, *pretend_losses(index, epoch))
                seen.append((epoch, index.tolist()))
                if (epoch, step) == stop_at:
                    return

    seen: list = []
    train(*fresh(), range(1, 4))
    expected, seen = seen, []
    adlp, batches, loader = fresh()
    if stop:
        train(adlp, batches, loader, range(1, 4), stop_at=(2, stop))
    else:
        train(adlp, batches, loader, range(1, 2))
    torch.save([adlp.state_dict(), batches.state_dict()], tmp_path / "state.pt")
    adlp, batches, loader = fresh()
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    adlp.load_state_dict(states[0])
    batches.load_state_dict(states[1])
    assert batches.epoch == 2
    train(adlp, batches, loader, range(batches.epoch, 4))
    assert seen == expected


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.rand(())


@pytest.mark.parametrize("workers", [0, 1])
def test_beginning_an_epoch_draws_nothing_from_torch_and_workers_differ_by_epoch(workers):
    batches = AUSAMBatchSampler(scored(), 32)
    loader = DataLoader(Augmented(), batch_sampler=batches, num_workers=workers)
    firsts = []
    for _ in range(2):
        before = torch.get_rng_state()
        epoch = iter(batches.indexed(loader))
        firsts.append(next(epoch)[1][0].item())
        assert torch.equal(torch.get_rng_state(), before) == (
            workers > 0
        )  # without workers, augmentation draws
        for _ in epoch:
            pass
    assert firsts[0] != firsts[1]


def test_select_resumes_too():
    a, b = (AUSAMBatchSampler(scored(), 32, seed=1) for _ in range(2))
    a.set_epoch(1)
    candidates = torch.arange(32)
    a.select(candidates)
    b.load_state_dict(a.state_dict())
    b.set_epoch(1)
    for _ in range(600):  # past two blocks of noise
        assert torch.equal(a.select(candidates), b.select(candidates))


def test_select_keeps_whole_batches_in_full_epochs_and_accepts_int32():
    batches = AUSAMBatchSampler(scored(), 32)
    assert torch.equal(batches.select(torch.arange(20, dtype=torch.int32)), torch.arange(20))
    batches.set_epoch(1)
    assert len(batches.select(torch.arange(20, dtype=torch.int32))) == 10


BAD = [
    ({"adlp": torch.zeros(3)}, TypeError, "adlp: .*Tensor"),
    ({"batch_size": 0}, ValueError, "batch_size: .*0"),
    ({"batch_size": 8.0}, TypeError, "batch_size: .*8.0"),
    ({"alpha": 0.0}, ValueError, "alpha: .*0.0"),
    ({"alpha": 1.1}, ValueError, "alpha: .*1.1"),
    ({"alpha": math.nan}, ValueError, "alpha: .*nan"),
    ({"s_min": 0.0}, ValueError, "s_min: .*0.0"),
    ({"s_max": 0.05}, ValueError, "s_max: .*0.05"),
    ({"warmup_epochs": -1}, ValueError, "warmup_epochs: .*-1"),
    ({"full_epochs": -1}, ValueError, "full_epochs: .*-1"),
    ({"seed": -1}, ValueError, "seed: .*-1"),
    ({"num_replicas": 0}, ValueError, "num_replicas: .*0"),
    ({"rank": 2, "num_replicas": 2}, ValueError, "rank: .*2"),
    ({"rank": -1, "num_replicas": 2}, ValueError, "rank: .*-1"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        AUSAMBatchSampler(**{"adlp": ADLP(10), "batch_size": 4, **arguments})


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (torch.arange(33), ValueError, "len.index.*32.*33"),
        (torch.empty(0, dtype=torch.int64), ValueError, "len.index.*0"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, r"index: .*\(2, 2\)"),
        ([1, 2], TypeError, r"index: .*\[1, 2\]"),
        (torch.tensor([1, N]), IndexError, f"index: {N}"),
    ],
)
def test_bad_select_changes_nothing(index, error, message):
    batches = AUSAMBatchSampler(scored(), 32)
    batches.set_epoch(1)
    with pytest.raises(error, match=message):
        batches.select(index)
    assert batches.state_dict()["position"] == 0


@pytest.mark.parametrize("options", [{"alpha": 1.0, "full_epochs": 0}, {"full_epochs": 9}])
@pytest.mark.parametrize("wrong", [-1, N])
def test_a_batch_that_is_kept_whole_must_be_of_the_table_too(options, wrong):
    adlp = scored()
    batches = AUSAMBatchSampler(adlp, 32, **options)
    with pytest.raises(IndexError, match=f"index: {wrong} is outside the table of {N} samples"):
        batches.select(torch.tensor([1, wrong]))
    assert batches.state_dict()["position"] == 0
    adlp._invalid = torch.zeros((), dtype=torch.int32)  # a table on CUDA, where raising would synchronise
    batches.select(torch.tensor([1, wrong, 2]))
    with pytest.raises(IndexError, match="index: 1 entries"):
        adlp.check()


def test_numpy_scalars_are_numbers_and_give_the_same_plan():
    """A seed of numpy's would print otherwise, which the generators are made from."""
    plain = AUSAMBatchSampler(scored(), 32, 0.25, s_min=0.5, s_max=2.0, seed=7, rank=1, num_replicas=2)
    ours = AUSAMBatchSampler(
        scored(),
        np.int64(32),
        np.float32(0.25),
        s_min=np.float16(0.5),
        s_max=np.float64(2.0),
        seed=np.uint8(7),
        warmup_epochs=np.int32(30),
        full_epochs=np.int16(1),
        rank=np.int64(1),
        num_replicas=np.int64(2),
    )
    assert epoch_of(ours, np.int64(3)) == epoch_of(plain, 3)
    assert repr(ours) == repr(plain)
    assert {type(v) for v in ours.state_dict().values()} == {int, bool}
    assert type(ours.alpha) is type(ours.s_min) is type(ours.s_max) is float
    assert len(ADLP(np.int64(5))) == 5
    with pytest.raises(TypeError, match=r"batch_size: .*float32"):
        AUSAMBatchSampler(ADLP(9), np.float32(4))
    with pytest.raises(ValueError, match=r"alpha: .*1\.5"):
        AUSAMBatchSampler(ADLP(9), 4, np.float32(1.5))


def test_repr_shows_the_settings():
    batches = AUSAMBatchSampler(ADLP(10), 4, 0.25, shuffle=False, seed=3)
    assert repr(batches) == (
        "AUSAMBatchSampler(ADLP(10, device='cpu'), batch_size=4, alpha=0.25, s_min=0.1, s_max=1.0, "
        "warmup_epochs=30, full_epochs=1, shuffle=False, drop_last=False, seed=3)"
    )
    assert "rank=1, num_replicas=2)" in repr(AUSAMBatchSampler(ADLP(9), 4, rank=1, num_replicas=2))


def test_indexed_refuses_a_loader_of_another_sampler():
    batches = AUSAMBatchSampler(scored(), 32)
    for loader in (DataLoader(dataset(), batch_size=32), [1, 2]):
        with pytest.raises(ValueError, match=r"batch_sampler.*select"):
            batches.indexed(loader)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version: .*1"),
        ({"num_samples": 100}, "num_samples: .*100"),
        ({"batch_size": 16}, "batch_size: .*16"),
        ({"num_replicas": 2}, "num_replicas: .*2"),
        ({"shuffle": False}, "shuffle: .*False"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, message):
    batches = AUSAMBatchSampler(scored(), 32)
    state = {**batches.state_dict(), "epoch": 5, "position": 3, **change}
    with pytest.raises(ValueError, match=message):
        batches.load_state_dict(state)
    assert batches.epoch == 0
    now = batches.state_dict()["version"]
    batches.load_state_dict({**state, "version": now, "position": 0})  # between epochs sizes may change
    assert batches.epoch == 5


def test_bad_epoch():
    with pytest.raises(ValueError, match=r"epoch: .*-1"):
        AUSAMBatchSampler(ADLP(4), 2).set_epoch(-1)
