"""Two processes of Fabric's on the CPU: `python fabric_worker.py KIND` checks that SAM sees what it wrapped.

KIND: what the training loop calls: Fabric's wrapper, with compiled code inside or around it.
"""

import sys
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import nn

from ausam_ext import SAM, VSAM

RHO = 0.1


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def share(rank):
    g = torch.Generator().manual_seed(rank)
    return torch.randn(8, 6, generator=g).double(), torch.randint(0, 3, (8,), generator=g)


def wrapped(fabric, kind):
    net = network()
    if kind == "inside":
        net = torch.compile(net, backend="eager")
    model = fabric.setup(net)
    return torch.compile(model, backend="eager") if kind == "outside" else model


def closure_of(fabric, model, scaler=None, infinite=False):
    x, y = share(fabric.global_rank)

    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(x), y) * (float("inf") if infinite else 1)
        fabric.backward(loss if scaler is None else scaler.scale(loss))
        return loss

    return closure


def gradient(weights, rank):
    x, y = share(rank)
    net = network()
    for p, w in zip(net.parameters(), weights, strict=True):
        p.data.copy_(w)
    return torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))


def sam_gradient(per_process):
    """The mean over the processes, each at ``w`` plus its perturbation."""
    weights = [p.detach() for p in network().parameters()]
    first = [gradient(weights, rank) for rank in range(2)]
    if not per_process:
        first = 2 * [[(a + b) / 2 for a, b in zip(*first, strict=True)]]
    second = []
    for rank, direction in enumerate(first):
        norm = torch.cat([g.flatten() for g in direction]).norm()
        moved = [w + RHO * g / norm for w, g in zip(weights, direction, strict=True)]
        second.append(gradient(moved, rank))
    return [(a + b) / 2 for a, b in zip(*second, strict=True)]


def everyones(mine):
    out = [None, None]
    dist.all_gather_object(out, mine)
    return out


def main(kind):
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()

    for per_process in (False, True):
        model = wrapped(fabric, kind)
        SAM(model, RHO).backward(closure_of(fabric, model), per_process=per_process)
        torch.testing.assert_close([p.grad for p in model.parameters()], sam_gradient(per_process))

    model = wrapped(fabric, kind)
    differs = VSAM(model, warmup_steps=1 + fabric.global_rank)
    with pytest.raises(ValueError, match="warmup_steps: expected the same argument in every process"):
        differs.decide()

    # Of a first pass that is not averaged, the others hear only from SAM.
    model, scaler = wrapped(fabric, kind), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer, sam = torch.optim.SGD(model.parameters(), lr=0.1), SAM(model, RHO, scaler=scaler)
    for overflow in (False, True):
        before = [p.detach().clone() for p in model.parameters()]
        passes = []
        closure = closure_of(fabric, model, scaler)
        broken = closure_of(fabric, model, scaler, infinite=True)

        def closure_once(closure=closure, broken=broken, overflow=overflow, passes=passes):
            passes.append(None)
            return (broken if overflow and len(passes) == 1 and fabric.global_rank == 1 else closure)()

        sam.backward(closure_once, per_process=True)
        assert everyones(bool(sam.overflow)) == [overflow, overflow]
        scaler.step(optimizer)
        scaler.update()
        same = [torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
        assert all(same) if overflow else not any(same)
    assert everyones(scaler.get_scale()) == [4.0, 4.0]
    time.sleep(1)  # gloo's threads may still hold tensors of the last reduction, and abort at the end


if __name__ == "__main__":
    main(sys.argv[1])
