"""Training loops whose steps a CUDA graph can hold."""

import torch
import torch.nn.functional as F
from device.copies import fill, tensors
from torch import nn

from ausam_ext import ADLP, SAM, VSAM

N, BATCH, STEPS = 97, 32, 30


def sgd(params, device):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def capturable_adam(params, device):
    return torch.optim.Adam(params, lr=0.01, capturable=device == "cuda")  # torch has it only for GPUs


class Training:
    """A network, its optimizer and the buffers that a step reads."""

    def __init__(self, device, make=sgd):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, 3))
        self.model = network.to(device)
        self.optimizer = make(self.model.parameters(), device)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(N, 6, generator=generator)
        self.data = x.to(device), (x[:, 0] > 0).long().to(device)
        self.index = torch.zeros(BATCH, dtype=torch.int64, device=device)
        self.x, self.y = torch.zeros(BATCH, 6, device=device), self.index.clone()
        self.order = [torch.randint(0, N, (BATCH,), generator=generator).to(device) for _ in range(STEPS)]

    def load(self, step):
        index = self.order[step % STEPS]
        fill([self.index, self.x, self.y], [index, *(t[index] for t in self.data)])

    def losses(self):
        return F.cross_entropy(self.model(self.x), self.y, reduction="none")

    def state(self):
        held = [self.model.state_dict(), self.optimizer.state_dict()]
        return [t.clone() for t in tensors(held)]


class AUSAM(Training):
    def __init__(self, device, make=sgd):
        super().__init__(device, make)
        self.sam, self.adlp = SAM(self.model, 0.1), ADLP(N, device)

    def step(self):
        self.optimizer.zero_grad()
        loss = self.losses()
        loss.mean().backward()
        with self.sam.perturbed():
            loss_perturbed = self.losses()
            loss_perturbed.mean().backward()
        self.adlp.update(self.index, loss, loss_perturbed)
        self.optimizer.step()
        return loss.detach()

    def state(self):
        return [*super().state(), *(t.clone() for t in (self.adlp.total, self.adlp.count, self.adlp.tried))]


def run(training, steps, step):
    losses = []
    for i in steps:
        training.load(i)
        result = step()
        losses += [t.clone() for t in tensors(result)]
    return losses


class VSAMTraining(Training):
    def __init__(self, device):
        super().__init__(device)
        self.vsam = VSAM(
            self.model, 0.2, warmup_steps=3, window=10, slices=2, initial_samples=4, alpha=0.5, max_reuse=3
        )

    def sampled_step(self):
        self.optimizer.zero_grad()
        self.losses().mean().backward()
        with self.vsam.perturbed():
            self.losses().mean().backward()
        self.optimizer.step()

    def reuse_step(self):
        self.optimizer.zero_grad()
        self.losses().mean().backward()
        self.vsam.reuse_()
        self.optimizer.step()

    def step(self):
        self.sampled_step() if self.vsam.decide() else self.reuse_step()
