"""Gradients, and a VSAM that takes one second pass and then reuses it."""

import torch
from helpers import same_bits
from networks import batch, closure_of

from ausam_ext import VSAM


def grads(model):
    return [p.grad.clone() for p in model.parameters()]


def equal(a, b):
    return all(same_bits(x, y) for x, y in zip(a, b, strict=True))


def window_of_one_sample(model, **options):
    """Warm up with one sample, then none for the rest of the window (the quota of 1 is forced at its end)."""
    options = {"warmup_steps": 1, "window": 1000, "slices": 2, "max_rate": 0.001, "seed": 1, **options}
    return VSAM(model, rho=0.5, **options)


def run(model, method, steps, lr=0.1):
    """Trains; returns for each step whether it took the second pass."""
    optimizer, sampled = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), []
    for step in range(steps):
        _, loss_perturbed = method.backward(closure_of(model, *batch(seed=step)))
        sampled.append(loss_perturbed is not None)
        optimizer.step()
    return sampled
