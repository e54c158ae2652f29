"""Neither the time nor the memory of a step depends on the size of the table."""

import pytest
import torch
from ausam.tables import N, dataset, epoch_of, pretend_losses, scored
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import ausam_ext.sampler
from ausam_ext import ADLP, AUSAMBatchSampler

TABLE = 9_000_000  # samples: the smallest column has 9 MB, a block of the plan 8


class Allocations(TorchDispatchMode):
    """The largest storage, in bytes, that an operation gave back and that was not there before."""

    def __init__(self, *known):
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, t.untyped_storage().nbytes())
        return out


def columns(adlp):
    return adlp.total, adlp.count, adlp.tried


def test_no_tensor_of_the_size_of_the_table_is_made(backend):
    adlp, saved = ADLP(TABLE), ADLP(TABLE).state_dict()
    index, losses = torch.randint(0, TABLE, (1000,)), torch.rand(1000)
    with Allocations(*columns(adlp), *(saved[k] for k in ("total", "count", "tried"))) as seen:
        batches = AUSAMBatchSampler(adlp, 10_000, full_epochs=0)
        for _, kept in zip(range(120), batches, strict=False):  # more than one block
            assert len(kept) == 5000
        adlp.update(index, losses, losses + 1)
        adlp.mean(index)
        batches.select(index)
        adlp.to("cpu")
        adlp.load_state_dict(saved)
        batches.load_state_dict(batches.state_dict())
        adlp.state_dict()
    assert 1000 * 8 <= seen.largest <= 8 << 20
    with Allocations(*columns(adlp)) as seen:
        adlp.mean()
    assert seen.largest == 4 * TABLE  # it would have been seen


@pytest.mark.parametrize("block", [1, 32, 75, 128])
def test_blocks_of_the_plan_do_not_show(monkeypatch, block):
    """The same batches as planned at once, and after a resume within an epoch."""
    options = {"batch_size": 32, "alpha": 0.4, "warmup_epochs": 2, "seed": 11, "num_replicas": 2, "rank": 1}
    at_once = [epoch_of(AUSAMBatchSampler(scored(), **options), e) for e in range(3)]
    monkeypatch.setattr(ausam_ext.sampler, "_PLAN_BLOCK", block)
    batches = AUSAMBatchSampler(scored(), **options)
    assert [epoch_of(batches, e) for e in range(3)] == at_once
    for epoch in range(3):
        for stop in range(len(batches)):
            batches.load_state_dict({**batches.state_dict(), "epoch": epoch, "position": stop})
            assert list(batches) == at_once[epoch][stop:]


@pytest.mark.parametrize("workers", [0, 2])
def test_blocks_planned_while_training_are_algorithm_1(monkeypatch, workers):
    """Losses recorded before a later block is planned change no score in it."""
    monkeypatch.setattr(ausam_ext.sampler, "_PLAN_BLOCK", 64)
    planned, looped = scored(), scored()
    options = {"batch_size": 32, "alpha": 0.4, "warmup_epochs": 3, "seed": 11, "full_epochs": 0}
    batches, chooser = AUSAMBatchSampler(planned, **options), AUSAMBatchSampler(looped, **options)
    candidates = AUSAMBatchSampler(ADLP(N), 32, 1.0, seed=11)
    loader = DataLoader(dataset(), batch_sampler=batches, num_workers=workers)
    for epoch in range(2):
        for b in (batches, chooser, candidates):
            b.set_epoch(epoch)
        for (index, _), row in zip(batches.indexed(loader), candidates, strict=True):
            row = torch.tensor(row)
            kept = row[chooser.select(row)]
            assert torch.equal(index, kept)
            planned.update(index, *pretend_losses(index, epoch))
            looped.update(kept, *pretend_losses(kept, epoch))
    assert torch.equal(planned.total, looped.total)
