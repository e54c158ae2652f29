"""What the tests of ESAM and of K-SAM share: a batch that records its passes, and SAM in plain torch."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ausam_ext.baselines import ESAM, KSAM

METHODS = {
    "ESAM": lambda model, **options: ESAM(model, 0.3, gamma=0.4, seed=1, **options),
    "KSAM": lambda model, **options: KSAM(model, 0.3, k_ratio=0.4, **options),
}


class Losses:
    """``losses(positions)`` of a model on a batch: cross-entropy, or what ``criterion`` makes of the output.

    ``passes`` has of each call its positions, the weights, and whether gradients were asked for.
    """

    def __init__(self, model, x, y=None, criterion=None):
        self.model, self.x, self.y, self.passes = model, x, y, []
        self.criterion = criterion or (lambda out, y: F.cross_entropy(out, y, reduction="none"))

    def __call__(self, positions):
        weights = [p.detach().clone() for p in self.model.parameters()]
        self.passes.append((positions, weights, torch.is_grad_enabled()))
        if positions is None:
            return self.criterion(self.model(self.x), self.y)
        return self.criterion(self.model(self.x[positions]), None if self.y is None else self.y[positions])


class Point(nn.Module):
    """Only weights, of one number each: the network of examples that are worked by hand."""

    def __init__(self, *weights):
        super().__init__()
        self.w = nn.ParameterList(nn.Parameter(torch.tensor([w], dtype=torch.float64)) for w in weights)

    def forward(self, x):
        return torch.cat(list(self.w)).expand(len(x), -1)


def parabolas(sign=1.0):
    """``l_i = (w - t_i)^2 / 2`` at ``w = 0`` with ``t = (1, 2, 3, -4)``."""
    targets = torch.tensor([[1.0], [2.0], [3.0], [-4.0]], dtype=torch.float64)
    model = Point(0.0)
    return model, Losses(model, targets, targets, lambda w, t: sign * (w - t).square().sum(1) / 2)


def bowl():
    """``(w1^2 + 4 w2^2) / 2`` at ``w = (3, 1)``, for two samples alike."""
    model, scale = Point(3.0, 1.0), torch.tensor([1.0, 4.0], dtype=torch.float64)
    return model, Losses(model, torch.zeros(2, 1), None, lambda w, _: (w.square() * scale).sum(1) / 2)


def gradients(model):
    return [p.grad for p in model.parameters()]


def spread(model, numbers):
    """One for each parameter, as a vector that has it for each weight."""
    pairs = zip(model.parameters(), numbers, strict=True)
    return torch.cat([torch.full((p.numel(),), n, dtype=torch.float64) for p, n in pairs])


def away(w, g, radius, adaptive=False):
    """``w + epsilon``; with a negative radius ``w - epsilon``. Vectors."""
    size = w.abs() if adaptive else 1.0
    return w + radius * size**2 * g / ((size * g).norm() + 1e-12)


def largest(scores, share):
    """Positions of the largest, the first of equals, ascending."""
    n = len(scores)
    order = sorted(range(n), key=lambda i: (-scores[i], i))
    return sorted(order[: max(min(2, n), math.floor(share * n + 1e-6))])
