"""Optimizers that keep momentum, and one step with Momentum-SAM or without."""

import torch
import torch.nn.functional as F
from networks import batch

OPTIMIZERS = {
    "SGD": lambda p, **kw: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, foreach=False, **kw),
    "SGD foreach": lambda p, **kw: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, dampening=0.1, foreach=True, **kw
    ),
    "SGD fused": lambda p, **kw: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True, **kw),
    "SGD Nesterov": lambda p, **kw: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, **kw),
    "Adam": lambda p, **kw: torch.optim.Adam(p, lr=0.01, foreach=False, **kw),
    "Adam foreach": lambda p, **kw: torch.optim.Adam(p, lr=0.01, foreach=True, **kw),
    "Adam fused": lambda p, **kw: torch.optim.Adam(p, lr=0.01, fused=True, **kw),
    "AdamW": lambda p, **kw: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, **kw),
    "RMSprop": lambda p, **kw: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, **kw),
    "NAdam": lambda p, **kw: torch.optim.NAdam(p, lr=0.01, **kw),
}


def momenta(optimizer):
    """Of each parameter, in order."""
    states = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    return [state.get("momentum_buffer", state.get("exp_avg")) for state in states]


def norm_of(tensors):
    return torch.cat([t.reshape(-1) for t in tensors]).norm()


def step(model, optimizer, msam=None, seed=1, sign=1.0):
    """One step; without ``msam`` a plain one."""
    x, y = batch(seed=seed, dtype=next(model.parameters()).dtype)
    optimizer.zero_grad()

    def passes():
        (sign * F.cross_entropy(model(x), y)).backward()

    if msam is None:
        passes()
    else:
        with msam.perturbed():
            passes()
    optimizer.step()


def gradient_at(model, weights, x, y):
    """By torch.func, at other weights than the model's."""
    names = [name for name, _ in model.named_parameters()]

    def loss(weights):
        return F.cross_entropy(
            torch.func.functional_call(model, dict(zip(names, weights, strict=True)), x), y
        )

    return torch.func.grad(loss)(tuple(w.detach() for w in weights))
