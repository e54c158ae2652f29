"""PyTorch Ignite: AUSAM and SAM in an `Engine`, with a learning rate that follows Ignite's schedule.

The bridge is `step`, which takes both passes, and `batches.indexed(loader)`, which `Engine.run` takes as it
takes any loader. `batches` and `adlp` go into Ignite's `Checkpoint` as they are, to resume within an epoch
too.
"""

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.handlers import CosineAnnealingScheduler
from ignite.metrics import RunningAverage
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, AUSAMBatchSampler


def make_data():
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))


def make_model():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def make_trainer(model, optimizer, sam, adlp):
    def step(engine, batch):
        index, (x, y) = batch
        loss = F.cross_entropy(model(x), y, reduction="none")
        loss.mean().backward()
        with sam.perturbed():
            loss_perturbed = F.cross_entropy(model(x), y, reduction="none")
            loss_perturbed.mean().backward()
        adlp.update(index, loss, loss_perturbed)
        optimizer.step()
        optimizer.zero_grad()
        return loss.mean().item()

    return Engine(step)


def train(epochs=5):
    train_set, model = make_data(), make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    adlp = ADLP(len(train_set))
    batches = AUSAMBatchSampler(adlp, batch_size=64, epochs=epochs, warmup_epochs=0.3)
    loader = batches.indexed(DataLoader(train_set, batch_sampler=batches))

    trainer = make_trainer(model, optimizer, SAM(model, rho=0.05), adlp)
    schedule = CosineAnnealingScheduler(optimizer, "lr", 0.1, 0.0, cycle_size=epochs * len(loader))
    trainer.add_event_handler(Events.ITERATION_STARTED, schedule)
    RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    trainer.run(loader, max_epochs=epochs)
    return model, trainer.state.metrics["loss"]


if __name__ == "__main__":
    torch.manual_seed(0)
    model, loss = train()
    x, y = make_data().tensors
    print(f"loss {loss:.3f}, accuracy {(model(x).argmax(1) == y).float().mean():.3f}")
