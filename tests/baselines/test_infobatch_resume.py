"""InfoBatchSampler kept and brought back, at any step."""

import copy
import random

import pytest
import torch
from ausam.stateful import SAVED_BY, Stateful
from ausam.tables import N, dataset
from baselines.pruned import ALL, epoch_of, looped, losses_of, scored, stored, weights, within_an_epoch
from helpers import assert_same_state
from torch.utils.data import DataLoader

from ausam_ext import ADLP, AUSAMBatchSampler
from ausam_ext.baselines import InfoBatchSampler


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
