"""Lightning Fabric: AUSAM and SAM, on one process or several, as in `python examples/fabric_loop.py 2`.

The bridge: SAM gets the model that `fabric.setup` returned, and both passes go through `fabric.backward`.
The loader does not go through `fabric.setup_dataloaders`, since AUSAM's sampler shares the epochs itself.
`fabric.save` takes `adlp` and `batches` as they are.
"""

import sys

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, AUSAMBatchSampler


def make_data():
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))


def make_model():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def train(fabric, epochs=5):
    train_set, model = make_data(), make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = fabric.setup(model, optimizer)
    sam = SAM(model, rho=0.05)

    adlp = ADLP(len(train_set), device=fabric.device)
    batches = AUSAMBatchSampler(
        adlp, 64, epochs=epochs, warmup_epochs=0.3, rank=fabric.global_rank, num_replicas=fabric.world_size
    )
    loader = DataLoader(train_set, batch_sampler=batches)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for index, (x, y) in batches.indexed(loader):
            x, y = fabric.to_device((x, y))
            loss = F.cross_entropy(model(x), y, reduction="none")
            fabric.backward(loss.mean())
            with sam.perturbed():
                loss_perturbed = F.cross_entropy(model(x), y, reduction="none")
                fabric.backward(loss_perturbed.mean())
            adlp.update(index, loss, loss_perturbed)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
        if fabric.world_size > 1:
            adlp.sync()
    return model, adlp


def main(processes=1):
    fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto")
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    model, _ = train(fabric)
    x, y = make_data().tensors
    fabric.print(f"accuracy {(model(x).argmax(1) == y).float().mean():.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
