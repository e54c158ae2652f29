"""What training loops around SAMOptimizer have in common."""

import torch
import torch.nn.functional as F
from helpers import same_bits

from ausam_ext import SAM, VSAM

METHODS = {
    "SAM": lambda m, **kw: SAM(m, 0.3, **kw),
    # Both kinds of iteration within a few steps.
    "VSAM": lambda m, **kw: VSAM(m, 0.3, warmup_steps=2, window=4, slices=2, initial_samples=2, seed=3, **kw),
}


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def same_weights(a, b):
    return all(same_bits(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def zeroing(optimizer, model, x, y):
    """A closure as in PyTorch's documentation."""

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure
