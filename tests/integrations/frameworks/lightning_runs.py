"""Training with Lightning, and the same training without it."""

import lightning as L
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from helpers import assert_same_state
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import SAM, VSAM
from ausam_ext.baselines import AESAM, LookSAM
from ausam_ext.schedule import ScheduledSAM

# What Lightning warns of in runs as short as these.
IGNORED = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*does not have many workers",
        ".*isinstance\\(treespec, LeafSpec\\)",
        ".*tensorboardX",
        ".*is smaller than the logging interval",
        "Checkpoint directory .* exists and is not empty",
        "You are using the `dataloader_iter` step flavor",
    )
]
METHODS = {
    "SAM": lambda m: SAM(m, 0.1),
    "VSAM": lambda m: VSAM(m, 0.1, warmup_steps=2, window=4, slices=2, initial_samples=2, seed=3),
    "AESAM": lambda m: AESAM(m, 0.1, total_steps=21),
    "LookSAM": lambda m: LookSAM(m, 0.1, every=3),
}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def digits(n):
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x[:n] / 16, dtype=torch.float32), torch.tensor(y[:n]))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 10))


class Training:
    def __init__(self, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)):
        super().__init__()
        self.net, self.optimizer, self.losses = network(), optimizer, []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.losses.append(self.trainer.callback_metrics["loss"])

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Net(Training, L.LightningModule):
    pass


class OldNet(Training, pytorch_lightning.LightningModule):
    pass


def fit(tmp_path, model, callbacks, loader, trainer=L.Trainer, ckpt_path=None, **options):
    options = {"max_epochs": 3, "enable_checkpointing": False, **QUIET, **options}
    trainer = trainer(callbacks=callbacks, default_root_dir=tmp_path, **options)
    if ckpt_path is None:
        trainer.fit(model, loader)
    else:
        trainer.fit(model, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def written_out(
    method,
    data,
    accumulate=1,
    clip=None,
    dtype=None,
    batch_size=30,
    epochs=3,
    left_out=(),
    before_epoch=lambda net: None,
    after_step=lambda net: None,
):
    """The same training without Lightning. ``left_out``: (epoch, batch)es that are not trained on."""
    net = network()
    optimizer, sam = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), METHODS[method](net)
    batches, losses = list(DataLoader(data, batch_size=batch_size)), []
    for epoch in range(epochs):
        before_epoch(net)
        trained = [batch for i, batch in enumerate(batches) if (epoch, i) not in left_out]
        for start in range(0, len(trained), accumulate):
            part = trained[start : start + accumulate]

            def one_pass(part):
                out = []
                for x, y in part:
                    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                        loss = F.cross_entropy(net(x), y)
                    out.append(loss.detach())
                    (loss / accumulate).backward()
                return out

            losses += one_pass(part)
            if not isinstance(sam, ScheduledSAM) or sam.decide():
                with sam.perturbed():
                    one_pass(part)
            else:
                sam.reuse_()
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            after_step(net)
    return net, losses


class Indexed(Net):
    def training_step(self, batch):
        index, (x, y) = batch
        loss = F.cross_entropy(self.net(x), y, reduction="none")
        self.callback.record(index, loss)
        return {"loss": loss.mean()}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        pass


def assert_same_net(a, b):
    assert_same_state(a.state_dict(), b.state_dict())
