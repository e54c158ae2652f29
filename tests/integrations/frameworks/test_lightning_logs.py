"""What SAMCallback gives a Trainer's logger."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler
from ausam_ext.integrations.lightning import SAMCallback

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*isinstance\\(treespec, LeafSpec\\)"
)


class Kept(Logger):
    """Keeps what it is given, by step."""

    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.rows = {}

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        values = {k.removeprefix("sam/"): v for k, v in metrics.items() if k.startswith("sam/")}
        if values:
            self.rows[step] = values


class Net(L.LightningModule):
    def __init__(self, callback=None):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.callback, self.losses = nn.Linear(3, 2), callback, []

    def training_step(self, batch, batch_idx):
        index, (x, y) = batch if self.callback else (None, batch)
        losses = F.cross_entropy(self.net(x), y, reduction="none")
        if self.callback:
            self.callback.record(index, losses)
        self.losses.append(losses.mean().item())
        return losses.mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(48, 3, generator=generator), torch.randint(2, (48,), generator=generator)
    )


def fit(tmp_path, model, callback, loader, **options):
    logger = Kept()
    L.Trainer(
        callbacks=[callback],
        logger=logger,
        default_root_dir=tmp_path,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    ).fit(model, loader)
    return logger.rows


def test_means_over_the_steps_between_logs_with_accumulation(tmp_path):
    """Twelve batches, two a step: six steps, logged every three."""
    model = Net()
    rows = fit(
        tmp_path,
        model,
        SAMCallback(lambda m: SAM(m, 0.5)),
        DataLoader(data(), batch_size=4),
        max_epochs=1,
        accumulate_grad_batches=2,
        log_every_n_steps=3,
    )
    assert list(rows) == [2, 5]
    passes = torch.tensor(model.losses).view(2, 3, 2, 2)  # logs, steps, first and second pass, batches
    first, second = passes.mean(3).unbind(2)
    for row, before, after in zip(rows.values(), first, second, strict=True):
        assert set(row) == {"loss", "sharpness", "grad_norm"}
        assert row["loss"] == pytest.approx(before.mean().item(), rel=1e-5)
        assert row["sharpness"] == pytest.approx((after - before).mean().item(), rel=1e-3)


def test_vsam_and_the_table(tmp_path):
    batches = AUSAMBatchSampler(ADLP(48), 8, warmup_epochs=4)
    callback = SAMCallback(lambda m: VSAM(m, warmup_steps=0, alpha=0.0, initial_rate=0.5), batches)
    model = Net(callback)
    loader = batches.indexed(DataLoader(data(), batch_sampler=batches))
    rows = fit(tmp_path, model, callback, loader, max_epochs=2, log_every_n_steps=6)
    assert list(rows) == [5, 11]
    for epoch, row in enumerate(rows.values()):
        assert row["rate"] == 0.5 and 0 < row["second_passes"] < 1
        assert row["psf_ratio"] > 0 and row["adlp_min"] <= row["adlp_median"] <= row["adlp_max"]
        assert row["s_max"] == pytest.approx(0.1 + 0.9 * epoch / 4)
