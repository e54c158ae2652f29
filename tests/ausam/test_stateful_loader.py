"""Loaders with a state of their own, which holds the sampler's: torchdata's and those like it."""

from copy import deepcopy

import pytest
import torch
from ausam.stateful import SAVED_BY, Stateful
from ausam.tables import N, dataset, pretend_losses, scored
from torch.utils.data import DataLoader

from ausam_ext import AUSAMBatchSampler


class Run:
    def __init__(self, workers):
        self.adlp = scored()
        self.batches = AUSAMBatchSampler(self.adlp, 32, warmup_epochs=2, seed=3)
        self.loader = Stateful(dataset(), batch_sampler=self.batches, num_workers=workers)
        self.seen = []

    def train(self, epochs, indexed, stop_at=None):
        for epoch in epochs:
            self.batches.set_epoch(epoch)
            plain = ((x, (x, y)) for x, y in self.loader)
            pairs = self.batches.indexed(self.loader) if indexed else plain
            for step, (index, (x, _)) in enumerate(pairs, 1):
                assert torch.equal(index, x)
                self.adlp.update(index, *pretend_losses(index, epoch))
                self.seen.append((epoch, index.tolist()))
                if (epoch, step) == stop_at:
                    return

    def state(self):
        parts = {"adlp": self.adlp, "batches": self.batches, "loader": self.loader}
        return {name: deepcopy(part.state_dict()) for name, part in parts.items()}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 6, 7, None])  # 203 samples in batches of 32 are 7; at the end of it
@pytest.mark.parametrize("saved_by", SAVED_BY, ids="+".join)
def test_resumes_within_an_epoch_and_between_two(workers, stop, saved_by):
    whole, first, resumed = Run(workers), Run(workers), Run(workers)
    whole.train(range(4), indexed=True)
    first.train(range(2), indexed=True, stop_at=(1, stop))
    state = first.state()
    for name in ["adlp", *saved_by]:
        getattr(resumed, name).load_state_dict(state[name])
    resumed.train(range(1 if stop else 2, 4), indexed=True)
    assert first.seen + resumed.seen == whole.seen
    assert resumed.batches.state_dict() == whole.batches.state_dict()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 6, 7, None])
def test_plain_loops_resume_too(workers, stop):
    """Those of a framework, which the sampler cannot see the progress of: the loader's state has it."""
    whole, first, resumed = Run(workers), Run(workers), Run(workers)
    whole.train(range(4), indexed=False)
    first.train(range(2), indexed=False, stop_at=(1, stop))
    state = first.state()
    resumed.adlp.load_state_dict(state["adlp"])
    resumed.loader.load_state_dict(state["loader"])
    resumed.train(range(1 if stop else 2, 4), indexed=False)
    assert first.seen + resumed.seen == whole.seen


def test_a_state_that_does_not_fit_is_refused():
    run, other = Run(0), AUSAMBatchSampler(scored(), 16)
    run.train(range(1), indexed=True, stop_at=(0, 2))
    with pytest.raises(ValueError, match="batch_size: expected 32"):
        iter(other).load_state_dict(run.state()["loader"]["batches"])
    assert other.epoch == 0 and len(list(other)) == -(-N // 16)


class Snapshots(DataLoader):
    """Restored to a place between two of its workers' snapshots, torchdata's takes the batches up to there
    itself."""

    def __iter__(self):
        iterator = super().__iter__()
        for _ in range(2):
            next(iterator)
        return iterator


def test_batches_that_a_loader_takes_before_it_gives_any_count_as_given():
    run, whole = Run(0), Run(0)
    whole.train(range(1), indexed=True)
    loader = Snapshots(dataset(), batch_sampler=run.batches, num_workers=2)
    pairs = iter(run.batches.indexed(loader))
    for position, (_, row) in enumerate(whole.seen[2:], 3):
        index, (x, _) = next(pairs)
        assert index.tolist() == x.tolist() == row
        assert run.batches.state_dict()["position"] == position
    assert next(pairs, None) is None and run.batches.epoch == 1


class Early(DataLoader):
    """Asked for its state before it is iterated, torchdata's makes the iterator and keeps it."""

    _initial_iter_for_state_dict = False

    def __iter__(self):
        kept = self.__dict__.pop("kept", None)
        self._initial_iter_for_state_dict = False
        return kept or super().__iter__()

    def state_dict(self):
        if not self._initial_iter_for_state_dict:
            self.kept = super().__iter__()
            self._initial_iter_for_state_dict = True
        return {}

    def load_state_dict(self, state):
        self.kept, self._initial_iter_for_state_dict = None, False


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_that_is_asked_for_before_the_first_loop(workers):
    run = Run(workers)
    loader = Early(dataset(), batch_sampler=run.batches, num_workers=workers)
    loader.state_dict()
    for _ in range(2):
        pairs = list(run.batches.indexed(loader))
        assert len(pairs) == 7 and all(torch.equal(index, x) for index, (x, _) in pairs)
