"""Two processes of Lightning's on the CPU: `python ddp_worker.py FOLDER` writes what each ends with."""

import os
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler
from ausam_ext.integrations.lightning import IndexedLoader, SAMCallback

N = 200


class Net(L.LightningModule):
    def __init__(self, callback):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.callback, self.indices = nn.Linear(8, 3), callback, []
        self.gradient = None

    def training_step(self, batch, batch_idx):
        index, (x, y) = batch
        loss = F.cross_entropy(self.net(x), y, reduction="none")
        self.callback.record(index, loss)
        return loss.mean()

    def on_train_batch_start(self, batch, batch_idx):
        if self.current_epoch == 0:
            self.indices.append(batch[0])

    def on_before_zero_grad(self, optimizer):
        if self.gradient is None and self.net.weight.grad is not None:
            self.gradient = self.net.weight.grad.clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model, callbacks, loader):
    trainer = L.Trainer(
        max_epochs=3,
        devices=2,
        accelerator="cpu",
        strategy="ddp",
        callbacks=callbacks,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    return trainer


def main(folder):
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(N, 8, generator=g), torch.randint(0, 3, (N,), generator=g))
    batches = AUSAMBatchSampler(ADLP(N), 30)
    callback = SAMCallback(lambda m: SAM(m, 0.1), batches)
    model = Net(callback)
    trainer = fit(model, [callback], IndexedLoader(DataLoader(data, batch_sampler=batches)))
    # The first step again in one process: the mean over both processes in both passes.
    mine = [model.indices[0], model.indices[1]]
    gathered = [None, None]
    dist.all_gather_object(gathered, [i.tolist() for i in mine])
    net = Net(None).net
    rows = torch.tensor([i for process in gathered for part in process for i in part])

    def closure():
        net.zero_grad()
        loss = F.cross_entropy(net(data.tensors[0][rows]), data.tensors[1][rows])
        loss.backward()
        return loss

    SAM(net, 0.1).backward(closure)
    torch.testing.assert_close(model.gradient, net.weight.grad)
    state = {
        "adlp": batches.adlp.state_dict(),
        "net": model.net.state_dict(),
        "first epoch": torch.cat(model.indices),
    }
    rank = trainer.global_rank
    torch.save(state, folder / f"{rank}.pt")
    differs = SAMCallback(lambda m: VSAM(m, warmup_steps=1 + rank), batches)
    with pytest.raises(ValueError, match="warmup_steps: expected the same argument in every process"):
        fit(Net(differs), [differs], IndexedLoader(DataLoader(data, batch_sampler=batches)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    # Not through Python's end, which aborts the process if a thread of gloo still lets go of a tensor then.
    os._exit(0)
