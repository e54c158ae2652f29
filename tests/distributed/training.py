"""A batch that is shared among processes, and training on it in all of them or in one."""

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from distributed.processes import assert_same_everywhere, gathered, here
from networks import mlp
from torch.nn.parallel import DistributedDataParallel as DDP

from ausam_ext import SAM, VSAM

K = 5  # samples of each process in a batch
VSAM_OPTIONS = {
    "warmup_steps": 4,
    "window": 6,
    "slices": 2,
    "initial_samples": 2,
    "alpha": 0.5,
    "norm_params": 3,
}
METHODS = {
    "SAM": lambda m, **options: SAM(m, 0.3, **options),
    "adaptive SAM": lambda m, **options: SAM(m, 0.5, adaptive=True, **options),
    "VSAM": lambda m, **options: VSAM(m, 0.3, **VSAM_OPTIONS, **options),
}


def wrapped(model, **options):
    return DDP(copy.deepcopy(model).to(here()), **options)


def whole(step, size=None):
    """The batch of all processes together."""
    size, g = size or K * dist.get_world_size(), torch.Generator().manual_seed(step)
    x = torch.randn(size, 6, generator=g, dtype=torch.float64)
    return x.to(here()), torch.randint(0, 3, (size,), generator=g).to(here())


def share(x, y):
    return x[dist.get_rank() :: dist.get_world_size()], y[dist.get_rank() :: dist.get_world_size()]


def closure_of(model, x, y, *forward):
    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(x, *forward), y, reduction="none")
        loss.mean().backward()
        return loss

    return closure


def overflowing(model, x, y, scaler, bad_pass):
    """A closure whose loss is infinite in that pass; in none if it is None."""
    passes = []

    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(x.float()), y)
        if len(passes) == bad_pass:
            loss = loss * float("inf")
        passes.append(loss)
        scaler.scale(loss).backward()
        return loss

    return closure


def train(model, method, batches, optimizer=None):
    """Returns for each step whether it took the second pass."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    sampled = []
    for x, y in batches:
        _, loss_perturbed = method.backward(closure_of(model, x, y))
        sampled.append(loss_perturbed is not None)
        optimizer.step()
    return sampled


def assert_equal_weights(model, reference, tolerance=1e-11):
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=tolerance, atol=tolerance)


def assert_equals_one_process(make, model=None, steps=20, **ddp_options):
    model = model or mlp(torch.float64)
    one = copy.deepcopy(model).to(here())
    many = wrapped(model, **ddp_options)
    sampled = train(many, make(many), [share(*whole(step)) for step in range(steps)])
    assert train(one, make(one), [whole(step) for step in range(steps)]) == sampled
    assert gathered(sampled) == [sampled] * dist.get_world_size()
    assert_same_everywhere([*many.parameters(), *(p.grad for p in many.parameters())])
    assert_equal_weights(many, one)
    return sampled


def counting(model):
    """Counts how often a gradient is reduced over the processes; the model fits into one bucket."""
    count = []

    def hook(state, bucket):
        count.append(bucket.index())
        tensor = bucket.buffer().div_(dist.get_world_size())
        return dist.all_reduce(tensor, async_op=True).get_future().then(lambda f: f.value()[0])

    model.register_comm_hook(None, hook)
    return count
