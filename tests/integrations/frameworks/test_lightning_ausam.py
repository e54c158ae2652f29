"""AUSAM in Lightning: the table, the weights, resuming, two processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state
from integrations.frameworks.lightning_runs import (
    IGNORED,
    METHODS,
    Indexed,
    digits,
    fit,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, StackDataset

from ausam_ext import ADLP, AUSAMBatchSampler
from ausam_ext.integrations.lightning import IndexedLoader, SAMCallback

pytestmark = IGNORED


def ausam(tmp_path, method="VSAM", accumulate=1, **options):
    """Trains with AUSAM; returns all that the next step depends on."""
    data = digits(210)
    batches = AUSAMBatchSampler(ADLP(len(data)), 30, alpha=0.5, warmup_epochs=2)
    callback, model = SAMCallback(METHODS[method], batches), Indexed()
    model.callback = callback
    loader = IndexedLoader(DataLoader(data, batch_sampler=batches))
    save = ModelCheckpoint(tmp_path, "{epoch}-{step}", save_top_k=-1, every_n_train_steps=1)
    epochs = ModelCheckpoint(tmp_path, "end-{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    options = {"enable_checkpointing": True, "accumulate_grad_batches": accumulate, **options}
    trainer = fit(tmp_path, model, [callback, save, epochs], loader, **options)
    assert not callback._accumulated and not callback._first
    return {
        "net": model.net.state_dict(),
        "callback": callback.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "step": trainer.global_step,
    }


# Within the first, full epoch; within a later one; at the last step of one; after its end.
@pytest.mark.parametrize("file", ["epoch=0-step=3", "epoch=1-step=10", "epoch=1-step=14", "end-epoch=1"])
def test_a_resumed_run_is_bit_identical(tmp_path, file):
    whole = ausam(tmp_path)
    count = whole["callback"]["adlp"]["count"]
    assert whole["step"] == 21 and len(count.unique()) > 1
    resumed = ausam(tmp_path, ckpt_path=tmp_path / f"{file}.ckpt")
    assert_same_state(resumed, whole)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_the_table_holds(tmp_path, accumulate):
    """Per sample, in the order of each pass, whatever the number of batches in a step."""
    seen = {}
    record = SAMCallback.record

    def spy(self, index, loss):
        for i, value in zip(index.tolist(), loss.detach(), strict=True):
            seen.setdefault(i, []).append(value)
        record(self, index, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SAMCallback, "record", spy)
        state = ausam(tmp_path, "SAM", accumulate, max_epochs=1)
    assert set(seen) == set(range(210)) and all(len(values) == 2 for values in seen.values())
    expected = torch.stack([(seen[i][1] - seen[i][0]).abs() for i in range(210)])
    assert torch.equal(state["callback"]["adlp"]["total"], expected)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_importance_weights_are_the_same_in_both_passes(tmp_path, accumulate):
    """The second pass runs on accumulated batches that are not the last which was handed out."""
    batches = AUSAMBatchSampler(ADLP(210), 30, warmup_epochs=0)
    callback, seen = SAMCallback(METHODS["SAM"], batches), []

    class Weighs(Indexed):
        def training_step(self, batch):
            index, (x, y) = batch
            loss = F.cross_entropy(self.net(x), y, reduction="none")
            self.callback.record(index, loss)
            seen.append((self.current_epoch, *index.tolist(), *batches.weights(index).tolist()))
            return {"loss": (loss * batches.weights(index)).mean()}

    model = Weighs()
    model.callback = callback
    fit(
        tmp_path,
        model,
        [callback],
        IndexedLoader(DataLoader(digits(210), batch_sampler=batches)),
        accumulate_grad_batches=accumulate,
    )
    assert len(seen) == 2 * 21 and len(set(seen)) == 21 and seen.count(seen[-1]) == 2


def test_two_processes_share_each_epoch_and_end_with_one_table(tmp_path):
    worker = Path(__file__).with_name("ddp_worker.py")
    subprocess.run([sys.executable, str(worker), str(tmp_path)], check=True, timeout=240, cwd=tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert_same_state(first["adlp"], second["adlp"])
    assert_same_state(first["net"], second["net"])
    count = first["adlp"]["count"]
    assert count.min() >= 1 and count.sum() == 200 + 2 * 2 * (3 * 15 + 5)
    both = torch.cat([first["first epoch"], second["first epoch"]])
    assert both.sort().values.tolist() == list(range(200))


def test_batches_that_are_chosen_in_training_step(tmp_path):
    """Without an IndexedLoader: the callback moves the sampler from epoch to epoch."""
    batches = AUSAMBatchSampler(ADLP(210), 30, warmup_epochs=0)
    callback = SAMCallback(METHODS["SAM"], batches)

    class Selects(Indexed):
        def training_step(self, batch):
            (x, y), index = batch
            if self.keep is None:  # the first pass
                self.keep = batches.select(index)
            keep = self.keep
            loss = F.cross_entropy(self.net(x[keep]), y[keep], reduction="none")
            callback.record(index[keep], loss)
            return loss.mean()

        def on_train_batch_start(self, batch, batch_idx):
            self.keep = None

    data = StackDataset(digits(210), range(210))
    fit(tmp_path, Selects(), [callback], DataLoader(data, batch_size=30))
    assert batches.adlp.count.sum() == 210 + 2 * 7 * 15
