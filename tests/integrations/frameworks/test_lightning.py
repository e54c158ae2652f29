"""Lightning's automatic optimization against loops written out; resuming; what is refused."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from helpers import assert_same_state, same_bits
from integrations.frameworks.lightning_runs import (
    METHODS,
    Indexed,
    Net,
    OldNet,
    digits,
    fit,
    network,
    written_out,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader, StackDataset

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler
from ausam_ext.integrations import SAMOptimizer
from ausam_ext.integrations.lightning import IndexedLoader, SAMCallback


def assert_same_net(a, b):
    assert_same_state(a.state_dict(), b.state_dict())


def test_the_documented_example(example, accuracy):
    space = example("lightning")
    adlp, n = space["batches"].adlp, len(space["train_set"])
    assert accuracy(space["trainer"].lightning_module.net, space["train_set"]) > 0.9
    assert adlp.count.sum() == n + 4 * (28 * 32 + 2)  # 28 batches of 64 and one of 5, halved after epoch 0
    assert adlp.count.min() >= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"clip": 0.05}, {"accumulate": 2, "clip": 0.05}])
def test_same_bits_as_the_loop_written_out(tmp_path, method, options):
    """Seven batches an epoch: also steps of fewer batches at its end. Logs have the first pass alone."""
    data = digits(210)
    net, losses = written_out(method, data, **options)
    model, callback = Net(), SAMCallback(METHODS[method])
    fit(
        tmp_path,
        model,
        [callback],
        DataLoader(data, batch_size=30),
        accumulate_grad_batches=options.get("accumulate", 1),
        gradient_clip_val=options.get("clip"),
    )
    assert_same_net(model.net, net)
    assert all(same_bits(a, b) for a, b in zip(model.losses, losses, strict=True))
    if method == "VSAM":
        assert callback.sam.controller.state_dict()["count"] > 2
    changed, _ = written_out(method, data)
    if options:
        assert not same_bits(changed[0].weight, net[0].weight)


def test_bfloat16(tmp_path):
    data = digits(210)
    net, _ = written_out("SAM", data, dtype=torch.bfloat16)
    model = Net()
    fit(
        tmp_path,
        model,
        [SAMCallback(METHODS["SAM"])],
        DataLoader(data, batch_size=30),
        precision="bf16-mixed",
    )
    assert_same_net(model.net, net)


class Leaves(Net):
    """Ends its first epoch at batch 3, before it is trained on."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.current_epoch == 0 and batch_idx == 3 else None


class NoLoss(Net):
    """Has nothing to train on in some batches."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx in (0, 4) else F.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        pass


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("module", "left_out"),
    [
        (Leaves, [(0, i) for i in range(3, 7)]),
        (NoLoss, [(epoch, i) for epoch in range(3) for i in (0, 4)]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_batches_that_took_no_part_in_the_first_pass(tmp_path, method, module, left_out):
    """Take none in the second one."""
    data = digits(210)
    net, _ = written_out(method, data, left_out=left_out)
    model = module()
    fit(tmp_path, model, [SAMCallback(METHODS[method])], DataLoader(data, batch_size=30))
    for p, q in zip(model.net.parameters(), net.parameters(), strict=True):
        assert same_bits(p, q)


def test_what_the_optimizer_does_not_train_is_cleared_too(tmp_path):
    """Its gradient is part of the direction, and what the last step left would add up in it."""

    class Head(Net):
        def configure_optimizers(self):
            return self.optimizer(self.net[3].parameters())

    data = digits(210)
    net = network()
    optimizer, sam = torch.optim.SGD(net[3].parameters(), lr=0.1, momentum=0.9), METHODS["SAM"](net)
    for _ in range(3):
        for x, y in DataLoader(data, batch_size=30):
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()
            with sam.perturbed():
                F.cross_entropy(net(x), y).backward()
            optimizer.step()
    model = Head()
    fit(tmp_path, model, [SAMCallback(METHODS["SAM"])], DataLoader(data, batch_size=30))
    assert_same_net(model.net, net)


def test_the_older_package(tmp_path):
    data = digits(210)
    net, _ = written_out("SAM", data)
    model = OldNet()
    callbacks = [SAMCallback(METHODS["SAM"])]
    fit(tmp_path, model, callbacks, DataLoader(data, batch_size=30), trainer=pytorch_lightning.Trainer)
    assert_same_net(model.net, net)


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


class TakesItsBatches(Net):
    def training_step(self, dataloader_iter):
        return super().training_step(*next(dataloader_iter)[:2])


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Stands for the one that needs a package of its own."""


class FSDPStrategy(SingleDeviceStrategy):
    """Stands for the one that needs a GPU."""


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [({}, True), ({"initial_rate": 0.34}, False), ({"alpha": 0.0}, False), ({"warmup_steps": 99}, False)],
)
def test_a_run_that_is_too_short_for_the_rate_it_starts_from(tmp_path, arguments, warned):
    callback = SAMCallback(lambda m: VSAM(m, **{"warmup_steps": 2, **arguments}))
    expected = pytest.warns(
        UserWarning, match=r"in 2% of the steps, and 21 steps are too few .*initial_rate=0\.34"
    )
    with expected if warned else nullcontext():
        fit(tmp_path, Net(), [callback], DataLoader(digits(210), batch_size=30))


def test_what_is_refused(tmp_path):
    loader = DataLoader(digits(60), batch_size=30)
    callbacks = [SAMCallback(METHODS["SAM"])]
    with pytest.raises(TypeError, match="SAMCallback: with manual optimization"):
        fit(tmp_path, Manual(), callbacks, loader)
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(TypeError, match="use 'bf16-mixed', or manual optimization"):
        fit(tmp_path, Net(), callbacks, loader, plugins=[scaled])
    with pytest.raises(TypeError, match=r"SAMCallback: training_step\(dataloader_iter\)"):
        fit(tmp_path, TakesItsBatches(), callbacks, loader)
    for strategy in (DeepSpeedStrategy, FSDPStrategy):
        with pytest.raises(TypeError, match=f"SAMCallback: {strategy.__name__} keeps weights"):
            fit(tmp_path, Net(), callbacks, loader, strategy=strategy(), accelerator="auto")
    with pytest.raises(TypeError, match="SAMCallback: LBFGS"):
        fit(tmp_path, Net(torch.optim.LBFGS), callbacks, loader)
    with pytest.raises(TypeError, match="make: expected it to return a SAM or VSAM"):
        fit(tmp_path, Net(), [SAMCallback(lambda model: None)], loader)
    batches = AUSAMBatchSampler(ADLP(60), 30)
    with pytest.raises(RuntimeError, match=r"training_step: expected it to call SAMCallback.record"):
        fit(tmp_path, Net(), [SAMCallback(METHODS["SAM"], batches)], loader)
    with pytest.raises(RuntimeError, match=r"record\(\): there is no table"):
        callbacks[0].record(torch.arange(2), torch.ones(2))
    with pytest.raises(TypeError, match="loader: expected a DataLoader made with batch_sampler="):
        IndexedLoader(loader)


@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_in_automatic_optimization(tmp_path, method):
    """Without a callback: an optimizer like any other, with a scheduler and the state in the checkpoint."""
    data = digits(210)
    net, _ = written_out(method, data)

    class Adapted(Net):
        def configure_optimizers(self):
            optimizer = SAMOptimizer(super().configure_optimizers(), METHODS[method](self))
            return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)]

        def training_step(self, batch, batch_idx):
            self.losses.append(F.cross_entropy(self.net(batch[0]), batch[1]))
            return self.losses[-1]

        def on_train_batch_end(self, outputs, batch, batch_idx):
            pass

    model = Adapted()
    last = ModelCheckpoint(tmp_path, save_last=True)
    trainer = fit(tmp_path, model, [last], DataLoader(data, batch_size=30), enable_checkpointing=True)
    for p, q in zip(model.net.parameters(), net.parameters(), strict=True):
        assert same_bits(p, q)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["optimizer_states"][0]
    assert_same_state(saved, trainer.optimizers[0].state_dict())
    assert ("sam" in saved) == (method != "SAM")


def test_the_adapter_refuses_what_it_cannot_do_in_automatic_optimization(tmp_path):
    adapted = lambda p: SAMOptimizer(torch.optim.SGD(p, lr=0.1), SAM(model))  # noqa: E731
    loader = DataLoader(digits(120), batch_size=30)
    model = Net(adapted)
    with pytest.raises(RuntimeError, match="the closure did not clear the gradients"):
        fit(tmp_path, model, [], loader, accumulate_grad_batches=2)
    model = Net(adapted)
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(RuntimeError, match=r"step\(\): SAM runs the closure twice"):
        fit(tmp_path, model, [], loader, plugins=[scaled])
