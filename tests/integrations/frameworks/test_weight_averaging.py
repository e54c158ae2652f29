"""SAMCallback beside Lightning's averages of the weights: the averages and statistics of a loop by hand."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state
from integrations.frameworks.lightning_runs import (
    IGNORED,
    METHODS,
    Indexed,
    Net,
    digits,
    fit,
    written_out,
)
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader

from ausam_ext import ADLP, AUSAMBatchSampler
from ausam_ext.integrations.lightning import IndexedLoader, SAMCallback

pytestmark = IGNORED


class Counting(Net):
    """Counts the passes of each epoch."""

    def __init__(self):
        super().__init__()
        self.passes = [0] * 4

    def training_step(self, batch, batch_idx):
        self.passes[self.current_epoch] += 1
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        pass


def swa():
    return StochasticWeightAveraging(0.1, swa_epoch_start=2, annealing_epochs=1)


first_or_last = pytest.mark.parametrize("place", [0, 1], ids=["SAM first", "SAM last"])


@first_or_last
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_of_weights_and_its_batch_statistics(tmp_path, method, accumulate, place):
    """The epoch after the last one runs each batch once, and leaves the average where it is."""
    data, snapshots = digits(210), []
    net, _ = written_out(
        method,
        data,
        accumulate,
        before_epoch=lambda net: snapshots.append([p.detach().clone() for p in net.parameters()]),
    )
    with torch.no_grad():
        for p, *values in zip(net.parameters(), *snapshots[1:], strict=True):
            p.copy_(sum(values) / len(values))
    update_bn(DataLoader(data, batch_size=30), net)

    model, callbacks = Counting(), [swa()]
    callbacks.insert(place, SAMCallback(METHODS[method]))
    fit(tmp_path, model, callbacks, DataLoader(data, batch_size=30), accumulate_grad_batches=accumulate)
    torch.testing.assert_close(dict(model.net.state_dict()), dict(net.state_dict()))
    assert model.passes[3] == 7
    if method == "SAM":
        assert model.passes[:3] == [14, 14, 14]
    assert not callbacks[place]._accumulated


@first_or_last
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_moving_average(tmp_path, method, accumulate, place):
    """Of weights and buffers, after each step; validation looks at it and hands the weights back."""
    data, averaged = digits(210), []

    def after_step(net):
        if not averaged:
            averaged.append(AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True))
        averaged[0].update_parameters(net)

    written_out(method, data, accumulate, after_step=after_step)

    class Validated(Net):
        def validation_step(self, batch, batch_idx):
            self.log("validation", F.cross_entropy(self.net(batch[0]), batch[1]))

    loader = DataLoader(data, batch_size=30)
    model, callbacks = Validated(), [EMAWeightAveraging(decay=0.9)]
    model.val_dataloader = lambda: loader
    callbacks.insert(place, SAMCallback(METHODS[method]))
    fit(tmp_path, model, callbacks, loader, accumulate_grad_batches=accumulate, val_check_interval=3)
    torch.testing.assert_close(dict(model.net.state_dict()), dict(averaged[0].module.state_dict()))


def test_a_run_with_averages_resumes(tmp_path):
    """From the end of an epoch in which the average had begun."""

    def run(**options):
        model, callback = Counting(), SAMCallback(METHODS["VSAM"])
        save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        loader = DataLoader(digits(210), batch_size=30)
        fit(tmp_path, model, [callback, swa(), save], loader, enable_checkpointing=True, **options)
        return {"net": model.net.state_dict(), "callback": callback.state_dict()}

    whole = run()
    assert_same_state(run(ckpt_path=tmp_path / "epoch=1.ckpt"), whole)


def test_the_table_holds_what_was_trained_on(tmp_path):
    """The epoch that collects statistics records losses too, of one pass."""
    batches = AUSAMBatchSampler(ADLP(210), 30, alpha=0.5, warmup_epochs=1)
    callback, model = SAMCallback(METHODS["SAM"], batches), Indexed()
    model.callback = callback
    fit(tmp_path, model, [callback, swa()], IndexedLoader(DataLoader(digits(210), batch_sampler=batches)))
    assert batches.epoch == 3
    assert batches.adlp.count.sum() == 210 + 2 * 7 * 15
