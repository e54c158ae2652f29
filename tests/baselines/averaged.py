"""A network with all kinds of state, trained with MESA or without."""

from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn

from ausam_ext.baselines import MESA

CLASSES = 4


class Network(nn.Module):
    """Running statistics, dropout, buffers of whole numbers and one that a state leaves out."""

    def __init__(self, seed=0, plain=False):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, CLASSES)
        self.between = nn.Tanh() if plain else nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.register_buffer("order", torch.arange(1000))
        self.register_buffer("mask", torch.ones(8, dtype=torch.bool))
        self.register_buffer("seen", torch.zeros(6), persistent=False)
        self.double()

    def forward(self, x):
        if self.training:
            self.seen = x.mean(0)
        return self.last(self.between(self.first(x)) * self.mask)


def batch(step, n=10):
    g = torch.Generator().manual_seed(step)
    return torch.randn(n, 6, generator=g, dtype=torch.float64), torch.randint(0, CLASSES, (n,), generator=g)


def train(run, steps, each=None):
    """Trains ``(network, optimizer, MESA or None, step)`` for so many steps of four in an epoch."""
    net, optimizer, mesa, begun = run
    for step in range(begun, begun + steps):
        x, y = batch(step)
        torch.manual_seed(step)  # of the dropout
        optimizer.zero_grad()
        logits = net(x)
        loss = F.cross_entropy(logits, y)
        if mesa is not None:
            mesa.set_epoch(step // 4)
            loss = loss + mesa.penalty(logits, x)
        loss.backward()
        optimizer.step()
        if mesa is not None:
            mesa.update()
        if each is not None:
            each()
    return net, optimizer, mesa, begun + steps


def start(options=None, **kind):
    """With MESA unless the options are None."""
    net = Network(**kind)
    mesa = None if options is None else MESA(net, **{"decay": 0.9, "start_epoch": -1, **options})
    return net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), mesa, 0


def state_of(run):
    return run[0].state_dict(), run[1].state_dict()


def tensors(net):
    return {name: t.detach().clone() for name, t in chain(net.named_parameters(), net.named_buffers())}
