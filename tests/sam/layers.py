"""Layers that change something besides the weights in a forward pass."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.nn.utils import parametrizations, spectral_norm

LARGE = 20_000  # numbers: too many to be copied in every step


class Remembers(nn.Module):
    """Averages its input, in one of the ways that people write this."""

    def __init__(self, how, n=8, frozen=False, on=True):
        super().__init__()
        self.how, self.on = how, on
        if frozen:
            self.memory = nn.Parameter(torch.zeros(n), requires_grad=False)
        else:
            self.register_buffer("memory", torch.zeros(n))

    def forward(self, x):
        if not self.on:
            return x
        with torch.no_grad():
            new = self.memory * 0.9 + x.detach().pow(2).mean()
            if self.how == "in place":
                self.memory.copy_(new)
            elif self.how == "in data":
                self.memory.data.copy_(new)
            elif self.how == "data assigned":
                self.memory.data = new
            elif self.how == "replaced":
                self.memory = new
            elif self.how == "without a trace":
                other = torch.ones_like(new)
                F.batch_norm(torch.stack((new + 0.1, new + 0.3)), self.memory, other, training=True)
        return x


class Late(nn.Module):
    """Its statistics come into being with the first batch, in several ways."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        if how == "was None":
            self.register_buffer("mean", None)

    def forward(self, x):
        mean = x.detach().mean(0)
        if getattr(self, "mean", None) is None:
            self.register_buffer("mean", mean) if self.how == "registered" else setattr(self, "mean", mean)
        elif self.how == "by turns":  # there in every second pass only
            del self.mean
        else:
            self.mean = 0.9 * self.mean + 0.1 * mean
        return x - mean


class ByTurns(Late):
    def __init__(self):
        super().__init__("registered")
        self.how = "by turns"

    def forward(self, x):
        if getattr(self, "mean", None) is None:
            self.register_buffer("mean", x.detach().mean(0))
            return x
        return super().forward(x)


class CodeBook(nn.Module):
    def __init__(self, codes, n):
        super().__init__()
        self.register_buffer("size", torch.ones(codes))
        self.register_buffer("total", torch.randn(codes, n))

    def forward(self, z):
        code = self.total / self.size[:, None]
        i = torch.cdist(z.detach(), code).argmin(1)
        hot = F.one_hot(i, len(code)).to(z)
        self.size.data = 0.9 * self.size + 0.1 * hot.sum(0)
        self.total.mul_(0.9).add_(hot.t() @ z.detach(), alpha=0.1)
        return z + (code[i] - z).detach()


class Keys(nn.Module):
    """A queue: the newest batch takes the place of the oldest."""

    def __init__(self, length, n):
        super().__init__()
        self.register_buffer("queue", F.normalize(torch.randn(length, n)))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))

    def forward(self, z):
        logits = F.normalize(z) @ self.queue.clone().t()
        a = int(self.at)
        self.queue[a : a + len(z)] = F.normalize(z.detach())
        self.at.fill_((a + len(z)) % len(self.queue))
        return logits[:, :8]


class StatisticsAsParameters(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(n), requires_grad=False)
        self.var = nn.Parameter(torch.ones(n), requires_grad=False)

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, training=True)


def quantised(n):
    return FakeQuantize(MovingAverageMinMaxObserver, 0, 255, dtype=torch.quint8)


LAYERS = {
    **{
        how + ", large" * (n == LARGE) + ", frozen" * frozen: partial(Remembers, how, n, frozen)
        for how in ("in place", "in data", "data assigned", "replaced", "without a trace")
        for n in (8, LARGE)
        for frozen in (False, True)
        if not (frozen and how == "replaced")
    },
    **{how: lambda how=how: Late(how) for how in ("was None", "registered", "assigned")},
    "by turns": ByTurns,
    "code book": lambda: CodeBook(5, 8),
    "large code book": lambda: CodeBook(3000, 8),
    "queue": lambda: Keys(160, 8),
    "large queue": lambda: Keys(3200, 8),
    "statistics as parameters": lambda: StatisticsAsParameters(8),
    "observer": lambda: quantised(8),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
    "spectral norm, older": lambda: spectral_norm(nn.Linear(8, 8)),
    "normalisation without affine": lambda: nn.BatchNorm1d(8, affine=False),
}


def state_of(model):
    """Buffers and frozen parameters, by name."""
    frozen = {k: p.detach() for k, p in model.named_parameters() if not p.requires_grad}
    return {**dict(model.named_buffers()), **frozen}


def network(layer):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3))
