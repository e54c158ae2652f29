"""Lightning's automatic optimization against loops written out."""

import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from helpers import assert_same_state, same_bits
from integrations.frameworks.lightning_runs import (
    IGNORED,
    METHODS,
    Net,
    OldNet,
    assert_same_net,
    digits,
    fit,
    network,
    written_out,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from ausam_ext.integrations import SAMOptimizer
from ausam_ext.integrations.lightning import SAMCallback

pytestmark = IGNORED


def test_the_documented_example(example, accuracy):
    space = example("lightning")
    adlp, n = space["batches"].adlp, len(space["train_set"])
    assert accuracy(space["trainer"].lightning_module.net, space["train_set"]) > 0.9
    assert adlp.count.sum() == n + 4 * (28 * 32 + 2)  # 28 batches of 64 and one of 5, halved after epoch 0
    assert adlp.count.min() >= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"clip": 0.05}, {"accumulate": 2, "clip": 0.05}])
def test_same_bits_as_the_loop_written_out(tmp_path, method, options):
    """Seven batches an epoch: also steps of fewer batches at its end. Logs have only the first pass."""
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
