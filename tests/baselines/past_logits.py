"""Logits of earlier epochs, and a network that is trained with SAF or without."""

import torch
import torch.nn.functional as F
from torch import nn

from ausam_ext.baselines import SAF

N, CLASSES = 23, 4


def rows(n=N, seed=0, dtype=torch.float64):
    return (
        torch.randn(n, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
        * 3
    )


def visit(saf, epoch, index, logits):
    saf.set_epoch(epoch)
    return saf.penalty(torch.tensor(index), logits)


def always(**options):
    """With a term from the start, so that all that is seen is the past."""
    return SAF(N, CLASSES, start_epoch=-1, **{"delay": 2, "dtype": torch.float64, **options})


def network(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, CLASSES)]
    return nn.Sequential(*layers).double()


def data():
    g = torch.Generator().manual_seed(5)
    return torch.randn(N, 6, generator=g, dtype=torch.float64), torch.randint(0, CLASSES, (N,), generator=g)


def batches(epoch, size=5):
    return torch.randperm(N, generator=torch.Generator().manual_seed(epoch)).split(size)


def train(run, steps):
    """Trains ``(network, optimizer, SAF or None, step)`` for so many steps; in place, but for the step."""
    net, optimizer, saf, begun = run
    x, y = data()
    for step in range(begun, begun + steps):
        epoch, place = divmod(step, len(batches(0)))
        index = batches(epoch)[place]
        torch.manual_seed(step)  # of the dropout
        optimizer.zero_grad()
        logits = net(x[index])
        loss = F.cross_entropy(logits, y[index])
        if saf is not None:
            saf.set_epoch(epoch)
            loss = loss + saf.penalty(index, logits)
        loss.backward()
        optimizer.step()
    return net, optimizer, saf, begun + steps


def start(saf=None, seed=0):
    net = network(seed)
    return net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), saf, 0


def state_of(run):
    return run[0].state_dict(), run[1].state_dict()
