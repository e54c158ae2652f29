"""Every method that takes its second pass at times, and a loop to run them in."""

import torch
from helpers import same_bits
from networks import batch, closure_of

from ausam_ext.baselines import AESAM, LookSAM, PeriodicSAM, RandomizedSAM

# Each with iterations of both kinds among the first twelve, of which the first takes two passes.
METHODS = {
    "PeriodicSAM": lambda m, **options: PeriodicSAM(m, 0.3, every=3, **options),
    "RandomizedSAM": lambda m, **options: RandomizedSAM(m, 0.3, seed=4, weight=1.5, **options),
    "AESAM": lambda m, **options: AESAM(m, 0.3, total_steps=12, **options),
    "LookSAM": lambda m, **options: LookSAM(m, 0.3, every=3, **options),
}


def run(model, method, steps=11, lr=0.1):
    """Trains with momentum, plainly if ``method`` is None; says which iterations took the second pass."""
    optimizer, sampled = torch.optim.SGD(model.parameters(), lr, momentum=0.9), []
    for step in range(steps):
        closure = closure_of(model, *batch(seed=step, dtype=model[0].weight.dtype))
        if method is None:
            closure()
        else:
            sampled.append(method.backward(closure)[1] is not None)
        optimizer.step()
    return sampled


def equal(a, b):
    """Whether two networks have the same weights, bit for bit."""
    return all(same_bits(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
