"""Trains AUSAM + vSAM in a process of its own: `python resume_worker.py STATE STOP_AFTER`.

Goes on from the file STATE where it exists, writes it every step, and ends after STOP_AFTER steps in all.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, VSAM, AUSAMBatchSampler


def main(state_file: Path, stop_after: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train_set = TensorDataset(torch.randn(300, 8), torch.randint(0, 3, (300,)))
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    adlp = ADLP(len(train_set))
    batches = AUSAMBatchSampler(adlp, 64, alpha=0.5, warmup_epochs=4)
    loader = DataLoader(train_set, batch_sampler=batches, num_workers=2)
    vsam = VSAM(model, rho=0.2, warmup_steps=3, window=6, slices=2, initial_samples=2, alpha=0.5)
    parts = {"model": model, "optimizer": optimizer, "adlp": adlp, "batches": batches, "vsam": vsam}
    done = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["dropout"])
        done = state["done"]

    for epoch in range(batches.epoch, 100):
        batches.set_epoch(epoch)
        for index, (x, y) in batches.indexed(loader):
            loss = F.cross_entropy(model(x), y, reduction="none")
            loss.mean().backward()
            if vsam.decide():
                with vsam.perturbed():
                    loss_perturbed = F.cross_entropy(model(x), y, reduction="none")
                    loss_perturbed.mean().backward()
                adlp.update(index, loss, loss_perturbed)
            else:
                vsam.reuse_()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == stop_after:
                state = {name: part.state_dict() for name, part in parts.items()}
                torch.save({**state, "dropout": torch.get_rng_state(), "done": done}, state_file)
                return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
