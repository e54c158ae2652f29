"""Hugging Face `datasets`: AUSAM on a `Dataset` and on an `IterableDataset`.

A `Dataset` with a length needs no bridge: it goes into the `DataLoader` as it is. An `IterableDataset`
takes no batch sampler: each sample carries its number, and `batches.select` chooses within the loop, from a
batch that is loaded whole. The table needs to know how many samples there are.
"""

import datasets
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

from ausam_ext import ADLP, SAM, AUSAMBatchSampler


def make_data():
    x, y = load_digits(return_X_y=True)
    columns = {"x": (x / 16).astype("float32"), "y": y, "id": range(len(y))}
    return datasets.Dataset.from_dict(columns).with_format("torch")


class Training:
    """A model and its step on one batch."""

    def __init__(self, samples, epochs):
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.sam = SAM(self.model, rho=0.05)
        self.adlp = ADLP(samples)
        self.batches = AUSAMBatchSampler(self.adlp, batch_size=64, epochs=epochs, warmup_epochs=0.3)

    def step(self, index, x, y):
        loss = F.cross_entropy(self.model(x), y, reduction="none")
        loss.mean().backward()
        with self.sam.perturbed():
            loss_perturbed = F.cross_entropy(self.model(x), y, reduction="none")
            loss_perturbed.mean().backward()
        self.adlp.update(index, loss, loss_perturbed)
        self.optimizer.step()
        self.optimizer.zero_grad()


def train(data, epochs=5):
    """`data` is a `Dataset`."""
    training = Training(len(data), epochs)
    batches = training.batches
    loader = DataLoader(data, batch_sampler=batches)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for index, batch in batches.indexed(loader):
            training.step(index, batch["x"], batch["y"])
    return training


def train_stream(stream, samples, epochs=5):
    """`stream` is an `IterableDataset`; its samples have a number below `samples` in the column `id`."""
    training = Training(samples, epochs)
    loader = DataLoader(stream, batch_size=64)
    for epoch in range(epochs):
        training.batches.set_epoch(epoch)
        stream.set_epoch(epoch)  # another order in each
        for batch in loader:
            keep = training.batches.select(batch["id"])
            training.step(batch["id"][keep], batch["x"][keep], batch["y"][keep])
    return training


if __name__ == "__main__":
    torch.manual_seed(0)
    data = make_data()
    stream = data.to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=500)
    for training in (train(data), train_stream(stream, len(data))):
        right = training.model(data["x"][:]).argmax(1) == data["y"][:]
        visits = training.adlp.count.float().mean()
        print(f"accuracy {right.float().mean():.3f}, visits of a sample {visits:.1f} in 5 epochs")
