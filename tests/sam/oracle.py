"""SAM's gradient once more, for the tests to compare with."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


def sam_gradient_float64(model, x, y, rho, adaptive):
    """Foret et al. (and ASAM) once more, functionally, in float64, one flat vector of weights."""
    model = copy.deepcopy(model).double()
    x, names = x.double(), [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss_at(w):
        parts = w.split([s.numel() for s in shapes])
        params = {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, params, x), y)

    w = nn.utils.parameters_to_vector(model.parameters()).detach()
    g = torch.func.grad(loss_at)(w)
    scaled = w.abs() * g if adaptive else g
    epsilon = rho * (w.abs() * scaled if adaptive else scaled) / (scaled.norm() + 1e-12)
    return torch.func.grad(loss_at)(w + epsilon)
