"""AUSAMBatchSampler from epoch to epoch, and stopped within one: the rest of it is the same."""

import pytest
import torch
from ausam.tables import N, dataset, epoch_of, pretend_losses, scored
from torch.utils.data import DataLoader

from ausam_ext import AUSAMBatchSampler


def test_without_set_epoch_epochs_follow_one_another():
    """Otherwise a loop that forgets the call would train on full batches in all epochs."""
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
