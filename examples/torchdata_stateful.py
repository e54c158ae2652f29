"""torchdata's `StatefulDataLoader`: a run that is stopped within an epoch goes on as if it never had been.

No bridge is needed: it takes AUSAM's batches as a plain `DataLoader` does, also with workers that load
ahead. The place in the epoch is in `batches.state_dict()`, so that a checkpoint needs no state of the
loader; it may hold that too.
"""

import tempfile

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from ausam_ext import ADLP, SAM, AUSAMBatchSampler


class Training:
    def __init__(self, epochs=5, workers=2):
        x, y = load_digits(return_X_y=True)
        self.data = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
        self.epochs, self.steps = epochs, 0
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.sam = SAM(self.model, rho=0.05)
        self.adlp = ADLP(len(self.data))
        self.batches = AUSAMBatchSampler(self.adlp, batch_size=64, epochs=epochs, warmup_epochs=0.3)
        self.loader = StatefulDataLoader(self.data, batch_sampler=self.batches, num_workers=workers)
        self.saved = ("model", "optimizer", "adlp", "batches")

    def run(self, stop_after=None):
        for epoch in range(self.batches.epoch, self.epochs):
            self.batches.set_epoch(epoch)
            for index, (x, y) in self.batches.indexed(self.loader):
                self.step(index, x, y)
                if self.steps == stop_after:
                    return

    def step(self, index, x, y):
        loss = F.cross_entropy(self.model(x), y, reduction="none")
        loss.mean().backward()
        with self.sam.perturbed():
            loss_perturbed = F.cross_entropy(self.model(x), y, reduction="none")
            loss_perturbed.mean().backward()
        self.adlp.update(index, loss, loss_perturbed)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def state_dict(self):
        return {name: getattr(self, name).state_dict() for name in self.saved}

    def load_state_dict(self, state):
        for name in self.saved:
            getattr(self, name).load_state_dict(state[name])

    def accuracy(self):
        x, y = self.data.tensors
        return (self.model(x).argmax(1) == y).float().mean()


if __name__ == "__main__":
    torch.manual_seed(0)
    stopped = Training()
    stopped.run(stop_after=40)  # within the second epoch
    resumed = Training()
    with tempfile.TemporaryFile() as file:
        torch.save(stopped.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file))
    resumed.run()
    print(f"accuracy {stopped.accuracy():.3f} when it was stopped, {resumed.accuracy():.3f} at the end")
