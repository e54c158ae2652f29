"""A small network and a batch for it: what the tests of every method train."""

import torch
import torch.nn.functional as F
from helpers import same_bits
from torch import nn


def mlp(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).to(
        dtype
    )


def batch(n=20, dtype=torch.float32, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 3, (n,), generator=g)


def closure_of(model, x, y):
    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(x), y, reduction="none")
        loss.mean().backward()
        return loss

    return closure


def snapshot(model):
    return [(p.data_ptr(), p.detach().clone()) for p in model.parameters()]


def assert_untouched(model, before):
    for p, (pointer, value) in zip(model.parameters(), before, strict=True):
        assert p.data_ptr() == pointer, "another storage"
        assert same_bits(p, value), "other bits"


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x, head):
        return getattr(self, head)(torch.tanh(self.body(x)))
