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
    """Weights alone, of one number each: the network of examples that are worked by hand."""

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


def values(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def gradients(model):
    return [p.grad for p in model.parameters()]


class Oracle:
    """A network as a function of its weights, in plain torch."""

    def __init__(self, model, x, y):
        self.model, self.x, self.y = model, x, y
        self.names = [name for name, _ in model.named_parameters()]

    def losses(self, weights):
        out = torch.func.functional_call(self.model, dict(zip(self.names, weights, strict=True)), (self.x,))
        return F.cross_entropy(out, self.y, reduction="none")

    def gradient(self, weights, positions):
        weights = [w.detach().requires_grad_() for w in weights]
        return torch.autograd.grad(self.losses(weights)[positions].mean(), weights)

    def away(self, weights, gradient, radii, adaptive):
        """``w + epsilon`` by each tensor's own radius; with a negative one ``w - epsilon``."""
        factors = [w.abs() if adaptive else torch.ones_like(w) for w in weights]
        norm = math.sqrt(sum(((f * g) ** 2).sum() for f, g in zip(factors, gradient, strict=True)))
        return [
            w + r * f * f * g / (norm + 1e-12)
            for w, f, g, r in zip(weights, factors, gradient, radii, strict=True)
        ]


def largest(scores, share):
    """Positions of the largest, the first of equals, ascending."""
    n = len(scores)
    order = sorted(range(n), key=lambda i: (-scores[i], i))
    return sorted(order[: max(min(2, n), math.floor(share * n + 1e-6))])


def assert_close(got, expected, tolerance=1e-12):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
