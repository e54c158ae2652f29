"""InfoBatchSampler: which samples an epoch has, what they weigh, and that all of the run agrees on it."""

import copy
import io
import math
import random

import pytest
import torch
import torch.nn.functional as F
from ausam.stateful import SAVED_BY, Stateful
from ausam.tables import N, dataset
from device.mode import no_synchronisation
from distributed.spawned import run as run_processes
from helpers import assert_same_state
from networks import mlp
from torch.utils.data import DataLoader

from ausam_ext import ADLP, SAM, AUSAMBatchSampler
from ausam_ext.baselines import InfoBatchSampler

ALL = torch.arange(N)


def losses_of(epoch, n=N):
    """Of every sample, some above and more below the mean."""
    return torch.empty(n).exponential_(generator=torch.Generator().manual_seed(epoch))


def scored(epoch=0, n=N, batch_size=32, epochs=200, **options):
    batches = InfoBatchSampler(n, batch_size, epochs=epochs, **options)
    batches.update(torch.arange(n), losses_of(epoch, n))
    return batches


def samples(batches):
    return [i for row in batches for i in row]


def weights(batches):
    return batches.weights(torch.arange(batches.num_samples)).tolist()


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_losses_as_training_has_them(device, dtype, index_dtype):
    """On any device, of any dtype, with a graph; one that is not finite leaves the score as it was."""
    n = 40_000  # above what float16 can count to
    batches = InfoBatchSampler(n, 32, epochs=9)
    index = torch.tensor([39_999, 39_998, 5, 6, 7], dtype=index_dtype)
    loss = torch.tensor([0.5, math.nan, 0.25, math.inf, 2.0], dtype=dtype, device=device, requires_grad=True)
    with no_synchronisation(device):
        batches.update(index, loss * 1)
        batches.update(index.to(device), loss * 1)
    assert not batches.state_dict()["recorded"].requires_grad
    batches.set_epoch(1)
    state = batches.state_dict()
    expected = torch.full((n,), 3.0)
    expected[[39_999, 5, 7]] = torch.tensor([0.5, 0.25, 2.0])
    assert torch.equal(state["scores"], expected) and state["recorded"].isnan().all()
    everything = torch.arange(n, dtype=index_dtype, device=device).view(200, 200)
    batches.weights(everything)  # the first time may bring them there
    with no_synchronisation(device):
        weight = batches.weights(everything)
    assert weight.shape == (200, 200) and weight.dtype == torch.float32 and weight.device == loss.device
    assert sorted(weight.flatten()[[39_999, 5, 7]].tolist()) == [0.0, 0.0, 2.0]
    assert weight.sum() == n - 3 + 2
    assert torch.equal(batches.weights(torch.tensor(6)), torch.tensor(1.0))


def epoch_of(batches, loader, epoch):
    """Trains on what is left of it; gives index and weights of each batch."""
    batches.set_epoch(epoch)
    seen = []
    for index, (x, y) in batches.indexed(loader):
        assert torch.equal(index, x) and torch.equal(y, x * 10)
        seen.append((epoch, index.tolist(), batches.weights(index).tolist()))
        batches.update(index, losses_of(epoch)[index])
    return seen


def looped(epochs, workers=0, prefetch=None, **options):
    """A run, and what every sample scores at its end, by another way."""
    batches = InfoBatchSampler(N, 16, epochs=10, seed=5, **options)
    loader = DataLoader(dataset(), batch_sampler=batches, num_workers=workers, prefetch_factor=prefetch)
    seen, scores = [], [3.0] * N
    for epoch in range(epochs):
        part = epoch_of(batches, loader, epoch)
        for _, index, _ in part:
            for i in index:
                scores[i] = losses_of(epoch)[i].item()
        seen += part
    return batches, seen, scores


def test_indexed_pairs_alike_for_any_number_of_workers_and_depth():
    batches, seen, scores = looped(4)
    assert batches.epoch == 4 and batches.state_dict()["scores"].tolist() == scores
    lengths = [sum(len(index) for epoch, index, _ in seen if epoch == e) for e in range(4)]
    assert lengths[0] == N > max(lengths[1:]) and len(set(lengths)) > 2
    for workers, prefetch in ((1, 1), (2, 7)):
        _, again, _ = looped(4, workers, prefetch)
        assert again == seen


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_processes_cover_each_epoch(world, shuffle, seed):
    """Of given rank, in one process here: each is given the losses of all, between its epochs."""
    options = {"shuffle": shuffle, "seed": seed, "batch_size": 8}
    one = InfoBatchSampler(N, epochs=200, **options)
    processes = [InfoBatchSampler(N, epochs=200, rank=r, num_replicas=world, **options) for r in range(world)]
    for epoch in range(4):
        for batches in (one, *processes):
            batches.set_epoch(epoch)
        whole, shares = samples(one), [samples(batches) for batches in processes]
        assert {len(share) for share in shares} == {math.ceil(len(whole) / world)}
        dealt = [i for of_all in zip(*shares, strict=True) for i in of_all]
        assert dealt == (whole + whole)[: len(dealt)]  # what is repeated makes it even
        for batches in (one, *processes):
            assert weights(batches) == weights(one)
            for i in whole:
                batches.update(torch.tensor([i]), losses_of(epoch)[[i]])
    assert len(whole) < N


def test_losses_of_other_processes_that_are_missing_are_an_error():
    """After the loop over an epoch there is still time for them."""
    batches = InfoBatchSampler(N, 16, epochs=9, rank=1, num_replicas=2)
    own = [
        i for _, index, _ in epoch_of(batches, DataLoader(dataset(), batch_sampler=batches), 0) for i in index
    ]
    assert batches.epoch == 1
    for use in (len, list, weights):
        with pytest.raises(RuntimeError, match="losses of all 2 processes"):
            use(batches)
    others = ALL[~torch.isin(ALL, torch.tensor(own))]
    batches.update(others, losses_of(0)[others])
    one = scored(batch_size=16, epochs=9)
    one.set_epoch(1)
    assert weights(batches) == weights(one)


def test_processes_that_were_given_the_losses_of_all_may_share_a_state():
    one, other = (scored(batch_size=16, rank=r, num_replicas=2) for r in range(2))
    loop = iter(one.indexed(DataLoader(dataset(), batch_sampler=one)))
    next(loop)
    other.load_state_dict(stored(one.state_dict()))
    assert len(list(other)) == len(list(one)) == len(one) - 1
    for batches in (one, other):
        batches.set_epoch(1)
    assert weights(other) == weights(one)


def test_processes_that_need_no_losses_of_others():
    """Nothing was recorded yet, or one sample is all there is."""
    batches = InfoBatchSampler(N, 16, epochs=9, rank=1, num_replicas=2)
    batches.set_epoch(1)
    assert len(samples(batches)) == math.ceil(N / 2)
    batches = InfoBatchSampler(1, 16, epochs=9, rank=1, num_replicas=2)
    batches.update(torch.tensor([0]), torch.ones(1))
    batches.set_epoch(1)
    assert samples(batches) == [0]


def _train_in_a_group(rank, folder):
    batches = InfoBatchSampler(N, 16, epochs=10, seed=5)
    assert (batches.rank, batches.num_replicas) == (rank, 2)
    loader = DataLoader(dataset(), batch_sampler=batches)
    seen = [epoch_of(batches, loader, epoch) for epoch in range(3)]
    # At an epoch's beginning one state serves all, within an epoch each has its own.
    torch.save((seen, batches.state_dict()), folder / f"{rank}.pt")
    torch.distributed.barrier()
    resumed = InfoBatchSampler(N, 16, epochs=10, seed=5)
    resumed.load_state_dict(torch.load(folder / "0.pt", weights_only=True)[1])
    assert list(resumed) == list(batches)
    loop = iter(batches.indexed(loader))
    for _ in range(3):
        index, _ = next(loop)
        batches.update(index, losses_of(3)[index])
    torch.save(batches.state_dict(), folder / f"{rank}-within.pt")
    torch.distributed.barrier()
    with pytest.raises(ValueError, match=f"rank: expected {1 - rank}.*got {rank}"):
        resumed.load_state_dict(torch.load(folder / f"{1 - rank}-within.pt", weights_only=True))
    resumed.load_state_dict(torch.load(folder / f"{rank}-within.pt", weights_only=True))
    rests = [epoch_of(b, DataLoader(dataset(), batch_sampler=b), 3) for b in (batches, resumed)]
    assert rests[0] == rests[1]
    assert_same_state(batches.state_dict(), resumed.state_dict())

    if rank:
        resumed._losses._recorded[-1] = 0.0  # as on CUDA, after an index outside the table
    with pytest.raises(IndexError, match=f"update.. was given were outside.*0 <= index < {N}"):
        resumed.set_epoch(9)
    resumed.set_epoch(9)  # it was told
    batches.set_epoch(9)
    assert list(resumed) == list(batches)

    for other in (
        InfoBatchSampler(N, 16, epochs=10, ratio=0.5 + rank / 4),
        InfoBatchSampler(N, 16 + rank, epochs=10),
        InfoBatchSampler(N + rank, 16, epochs=10),
        copy.deepcopy(batches)
        if rank
        else InfoBatchSampler(N, 16, epochs=10, seed=5),  # only one loaded a state
    ):
        with pytest.raises(ValueError, match="same epoch, settings and scores"):
            other.set_epoch(8)
    with pytest.raises(ValueError, match="same epoch"):
        InfoBatchSampler(N, 16, epochs=10).set_epoch(1 + rank)
    of_one_process = scored(batch_size=16, epochs=10, rank=0, num_replicas=1, seed=5)
    resumed.load_state_dict(of_one_process.state_dict())
    resumed.set_epoch(1)
    of_one_process.set_epoch(1)
    assert weights(resumed) == weights(of_one_process)

    # Each its own run: of one sample below the mean, half is none.
    alone = InfoBatchSampler(N, 16, epochs=10, rank=0, num_replicas=1)
    alone.update(ALL[[rank]], torch.ones(1))
    alone.set_epoch(1)
    assert weights(alone) == [float(i != rank) for i in range(N)]


def test_a_group_of_processes_exchanges_its_losses(tmp_path, free_port):
    assert run_processes(_train_in_a_group, 2, free_port, tmp_path) == [0, 0]
    seen, states = zip(*[torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)], strict=True)
    one = InfoBatchSampler(N, 16, epochs=10, seed=5)
    for epoch in range(3):
        one.set_epoch(epoch)
        shares = [[i for _, index, _ in of_rank[epoch] for i in index] for of_rank in seen]
        assert len(shares[0]) == len(shares[1]) == math.ceil(len(samples(one)) / 2)
        assert sorted({*shares[0], *shares[1]}) == sorted(samples(one))
        weight = weights(one)
        for _, index, of_batch in seen[0][epoch] + seen[1][epoch]:
            assert of_batch == [weight[i] for i in index]
        index = torch.tensor(samples(one))
        one.update(index, losses_of(epoch)[index])
    one.set_epoch(3)
    for state in states:
        for name in ("scores", "weights"):
            assert torch.equal(state[name], one.state_dict()[name])


def stored(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_resumes_at_any_step(workers, seed):
    whole, seen, _ = looped(4)
    first = InfoBatchSampler(N, 16, epochs=10, seed=5)
    second = InfoBatchSampler(N, 16, epochs=10, seed=seed)  # all that is drawn comes from the state
    loaders = [DataLoader(dataset(), batch_sampler=b, num_workers=workers) for b in (first, second)]
    stop = random.Random(seed).randrange(1, len(seen))
    again = []
    for epoch in range(4):
        first.set_epoch(epoch)
        for index, _ in first.indexed(loaders[0]):
            again.append((epoch, index.tolist(), first.weights(index).tolist()))
            first.update(index, losses_of(epoch)[index])
            if len(again) == stop:
                break
        if len(again) == stop:
            break
    second.load_state_dict(stored(first.state_dict()))
    for later in range(epoch, 4):
        again += epoch_of(second, loaders[1], later)
    assert again == seen
    assert_same_state(second.state_dict(), whole.state_dict())


def test_a_state_keeps_what_the_epoch_was_planned_from():
    """Though its tensors are no copies: later plans make new ones."""
    batches = scored()
    batches.set_epoch(1)
    state = batches.state_dict()
    then = copy.deepcopy(state)
    for epoch in (1, 2, 3):
        batches.update(ALL, losses_of(epoch))
        batches.set_epoch(epoch + 1)
    for name in ("scores", "weights"):
        assert torch.equal(state[name], then[name]) and not torch.equal(
            state[name], batches.state_dict()[name]
        )


def test_the_state_of_an_iterator_that_has_ended_is_the_next_epochs_beginning():
    batches = scored(3, seed=2)
    rows = iter(batches)
    assert len(list(rows)) == len(batches)
    state = stored(rows.state_dict())
    assert state["epoch"] == 1 and state["planned"] == 0
    resumed = InfoBatchSampler(N, 32, epochs=200)
    resumed.load_state_dict(state)
    for b in (batches, resumed):
        b.set_epoch(1)
    assert list(resumed) == list(batches) and weights(resumed) == weights(batches) != [1.0] * N


def test_the_state_of_another_sampler_is_refused():
    with pytest.raises(ValueError, match="version"):
        scored().load_state_dict(AUSAMBatchSampler(ADLP(N), 32).state_dict())


class Run:
    def __init__(self, workers):
        self.batches = InfoBatchSampler(N, 32, epochs=9, seed=3)
        self.loader = Stateful(dataset(), batch_sampler=self.batches, num_workers=workers)
        self.seen = []

    def train(self, epochs, stop_at=None):
        for epoch in epochs:
            self.batches.set_epoch(epoch)
            for step, (index, _) in enumerate(self.batches.indexed(self.loader), 1):
                self.seen.append((epoch, index.tolist(), self.batches.weights(index).tolist()))
                self.batches.update(index, losses_of(epoch)[index])
                if (epoch, step) == stop_at:
                    return


@pytest.mark.parametrize("stop", [1, "last", None])
@pytest.mark.parametrize("saved_by", SAVED_BY, ids="+".join)
def test_resumes_from_the_state_of_a_loader(stop, saved_by):
    """Which notes it when it draws a batch, ahead of the training."""
    whole, first, resumed = Run(workers=0), Run(workers=2), Run(workers=2)
    whole.train(range(4))
    if stop == "last":
        stop = sum(epoch == 1 for epoch, _, _ in whole.seen)
    first.train(range(2), stop_at=(1, stop))
    state = copy.deepcopy({name: getattr(first, name).state_dict() for name in saved_by})
    for name in saved_by:
        getattr(resumed, name).load_state_dict(state[name])
    resumed.train(range(1 if stop else 2, 4))
    assert first.seen + resumed.seen == whole.seen
    assert_same_state(resumed.batches.state_dict(), whole.batches.state_dict())


def within_an_epoch():
    batches = scored(batch_size=16)
    batches.set_epoch(1)
    for index, _ in batches.indexed(DataLoader(dataset(), batch_sampler=batches)):
        batches.update(index, losses_of(1)[index])
        return batches


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"version": 3}, ValueError, "version: expected 1, got 3"),
        ({"batch_size": 8}, ValueError, "batch_size: expected 8.*got 16"),
        ({"num_replicas": 2}, ValueError, "num_replicas: expected 2.*got 1"),
        (
            {"position": 0, "num_replicas": 2},
            ValueError,
            "rank: expected 0 of 2.*got 0 of 1.*after set_epoch",
        ),
        ({"scores": torch.ones(N + 1)}, ValueError, f"num_samples: expected.*got {N}"),
        ({"planned": None}, KeyError, "planned"),
        ({"recorded": None}, KeyError, "recorded"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, error, message):
    batches = within_an_epoch()
    before = copy.deepcopy(batches.state_dict())
    state = {**scored(3, batch_size=16).state_dict(), "position": 1, "seed": 77, **change}
    with pytest.raises(error, match=message):
        batches.load_state_dict({name: value for name, value in state.items() if value is not None})
    assert_same_state(batches.state_dict(), before)
    assert len(list(batches)) == len(batches) - 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples: expected an integer at least 1, got 0"),
        ({"num_samples": "a"}, TypeError, "num_samples: expected an integer"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"epochs": 0}, ValueError, "epochs: expected an integer at least 1, got 0"),
        ({"epochs": None}, TypeError, "epochs"),
        ({"ratio": 1.0}, ValueError, "ratio: expected a number from 0 to below 1, got 1.0"),
        ({"ratio": -0.1}, ValueError, "ratio"),
        ({"delta": 1.1}, ValueError, "delta: expected a number from 0 to 1, got 1.1"),
        ({"delta": math.nan}, ValueError, "delta"),
        ({"rank": 2, "num_replicas": 2}, ValueError, "rank"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_arguments_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        InfoBatchSampler(**{"num_samples": 9, "batch_size": 2, "epochs": 5, **options})


@pytest.mark.parametrize(
    ("index", "loss", "error", "message"),
    [
        ([0, 1], torch.ones(2), TypeError, "index: expected a tensor"),
        (torch.ones(2), torch.ones(2), TypeError, "index: expected a tensor of int64 or int32"),
        (torch.tensor([[0, 1]]), torch.ones(1, 2), ValueError, r"index: expected 1 dimension"),
        (torch.tensor([0, 1]), torch.ones(2).long(), TypeError, "loss: expected a tensor of float32"),
        (
            torch.tensor([0, 1]),
            torch.ones(2).mean(),
            ValueError,
            r'loss: expected one for each.*reduction="none"',
        ),
        (torch.tensor([0, 1]), torch.ones(3), ValueError, "loss: expected one for each.*another batch"),
        (torch.tensor([0, N]), torch.ones(2), IndexError, f"index: {N} is outside the table of {N}"),
        (torch.tensor([-1, 1]), torch.ones(2), IndexError, "index: -1 is outside"),
    ],
)
def test_losses_that_do_not_fit_change_nothing(index, loss, error, message):
    batches = within_an_epoch()
    before = copy.deepcopy(batches.state_dict())
    with pytest.raises(error, match=message):
        batches.update(index, loss)
    assert_same_state(batches.state_dict(), before)


def test_weights_of_what_is_no_sample():
    batches = within_an_epoch()
    for index, error in (([0], TypeError), (torch.ones(1), TypeError), (torch.tensor([N]), IndexError)):
        with pytest.raises(error, match="index: "):
            batches.weights(index)


def test_an_index_outside_the_table_on_another_device():
    """There it is noticed when the next epoch is planned, and nothing faults or is written: here as if."""
    batches = within_an_epoch()
    before = batches.state_dict()["recorded"].clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ausam_ext.checks.inside", lambda *args: None)
        batches.update(torch.tensor([-7, N + 7]), torch.tensor([1.0, math.nan]))
        assert batches.weights(torch.tensor([-7, N + 7])).isnan().all()
    torch.testing.assert_close(batches.state_dict()["recorded"], before, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(IndexError, match=rf"outside the table, and were skipped; expected 0 <= index < {N}"):
        batches.set_epoch(2)
    batches.set_epoch(2)  # it was told, and the rest counts
    assert len(samples(batches)) < N
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ausam_ext.checks.inside", lambda *args: None)
        batches.update(torch.tensor([N + 7]), torch.tensor([math.nan]))
    with pytest.raises(IndexError, match="outside the table"):
        batches.set_epoch(3)


def test_what_it_says_of_itself_and_of_a_loader():
    batches = InfoBatchSampler(N, 16, epochs=9)
    assert repr(batches).startswith(
        f"InfoBatchSampler({N}, batch_size=16, epochs=9, ratio=0.5, delta=0.875, "
    )
    with pytest.raises(ValueError, match="batch_sampler= this sampler") as caught:
        batches.indexed(DataLoader(dataset(), batch_size=16))
    assert "select()" not in str(caught.value)  # which it does not have
    with pytest.raises(ValueError, match=f"expected a data set of {N} samples.*got {N - 1}"):
        batches.indexed(DataLoader(dataset(N - 1), batch_sampler=batches))
    loader = DataLoader(dataset(), batch_sampler=batches)
    list(loader)
    batches.update(ALL, losses_of(0))
    with pytest.warns(UserWarning, match="InfoBatchSampler: epoch 0 begins once more"):
        list(loader)


def gradient(model, x, y, weight, at=None):
    """Of the weighted mean, at other parameters if given, as one vector."""
    params = dict(model.named_parameters()) if at is None else at
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    loss = F.cross_entropy(torch.func.functional_call(model, params, x), y, reduction="none")
    return dict(zip(params, torch.autograd.grad((weight * loss).mean(), params.values()), strict=True))


@pytest.mark.parametrize("weighted", [0, 1])
def test_sam_with_weights_in_one_pass(weighted):
    """SAM+Info* weighs the first pass, SAM+Info the second: the docstring's loop, each step by hand."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, generator=g, dtype=torch.float64)
    y = torch.randint(0, 3, (N,), generator=g)
    model = mlp(torch.float64)
    sam, optimizer = SAM(model, 0.3), torch.optim.SGD(model.parameters(), 0.1)
    batches = InfoBatchSampler(N, 32, epochs=8)
    loader = DataLoader(dataset(), batch_sampler=batches)
    rate, kept, scores = [], [], {}
    for epoch in range(8):
        batches.set_epoch(epoch)
        for i, (index, _) in enumerate(batches.indexed(loader)):
            rate.append((epoch + i / len(batches)) / 8)
            weight = [torch.ones(len(index)), torch.ones(len(index))]
            weight[weighted] = batches.weights(index)
            g_1 = gradient(model, x[index], y[index], weight[0])
            norm = sum((t**2).sum() for t in g_1.values()).sqrt()
            moved = {name: p + 0.3 * g_1[name] / norm for name, p in model.named_parameters()}
            expected = gradient(model, x[index], y[index], weight[1], moved)

            losses = [F.cross_entropy(model(x[index]), y[index], reduction="none")]
            (weight[0] * losses[0]).mean().backward()
            with sam.perturbed():
                losses.append(F.cross_entropy(model(x[index]), y[index], reduction="none"))
                (weight[1] * losses[1]).mean().backward()
            for name, p in model.named_parameters():
                torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)
            optimizer.step()
            optimizer.zero_grad()
            batches.update(index, losses[weighted])
            scores.update(zip(index.tolist(), losses[weighted].tolist(), strict=True))
        kept.append(len(samples(batches)))  # of the epoch that is next
    assert kept[0] < N and min(kept[:6]) < 0.9 * N and kept[6] == N  # 7 = .875 * 8
    assert rate == sorted(rate) and rate[-1] < 1
    saved = batches.state_dict()["scores"]
    torch.testing.assert_close(saved, torch.tensor([scores[i] for i in range(N)]))


@pytest.mark.parametrize("method", ["SGD", "SAM"])
def test_at_ratio_0_training_is_plain(method):
    """The weights are ones, so that the same batches give the same bits."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(N, 6, generator=g), torch.randint(0, 3, (N,), generator=g)
    trained = []
    for batches in (
        InfoBatchSampler(N, 32, epochs=3, ratio=0, seed=1),
        AUSAMBatchSampler(ADLP(N), 32, alpha=1, seed=1),
    ):
        torch.manual_seed(0)
        model = mlp(torch.float32)
        sam, optimizer = SAM(model, 0.3), torch.optim.SGD(model.parameters(), 0.1)
        for epoch in range(3):
            batches.set_epoch(epoch)
            for index, _ in batches.indexed(DataLoader(dataset(), batch_sampler=batches)):
                loss = F.cross_entropy(model(x[index]), y[index], reduction="none")
                (batches.weights(index) * loss).mean().backward()
                if method == "SAM":
                    with sam.perturbed():
                        F.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
                optimizer.zero_grad()
                if isinstance(batches, InfoBatchSampler):
                    batches.update(index, loss)
        trained.append(list(model.parameters()))
    for p, q in zip(*trained, strict=True):
        assert torch.equal(p, q)
