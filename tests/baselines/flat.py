"""A network as one flat vector of weights in float64, to write down methods as papers do."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Flat:
    """The cross entropy of a copy of ``model``; ``w`` are its weights."""

    def __init__(self, model):
        self.model = copy.deepcopy(model).double()
        self.names = [name for name, _ in self.model.named_parameters()]
        self.shapes = [p.shape for p in self.model.parameters()]
        self.w = nn.utils.parameters_to_vector(self.model.parameters()).detach()

    def losses(self, w, x, y):
        parts = w.split([shape.numel() for shape in self.shapes])
        params = {n: p.view(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}
        return F.cross_entropy(
            torch.func.functional_call(self.model, params, x.double()), y, reduction="none"
        )

    def gradient(self, w, x, y):
        return torch.func.grad(lambda w: self.losses(w, x, y).mean())(w)

    def sam_gradients(self, x, y, rho):
        """Those at ``w`` and at ``w + epsilon``."""
        g = self.gradient(self.w, x, y)
        return g, self.gradient(self.w + rho * g / (g.norm() + 1e-12), x, y)


def weights(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().double()


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()]).double()


class Quadratic(nn.Module):
    """L(w) = (w1^2 + 4 w2^2) / 2 at w = (3, 1): g = (3, 4), and with rho = 0.5 g_s = (3.3, 5.6)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))

    def forward(self):
        return (self.w[0] ** 2 + 4 * self.w[1] ** 2) / 2

    def closure(self):
        self.zero_grad()
        loss = self()
        loss.backward()
        return loss


class Linear(nn.Module):
    """A loss whose gradient is what one gives it."""

    def __init__(self, size=2):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def closure_of(self, g):
        def closure():
            self.zero_grad()
            loss = (self.w * torch.tensor(g, dtype=torch.float64)).sum()
            loss.backward()
            return loss

        return closure
