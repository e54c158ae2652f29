"""Checks of ESAM and K-SAM in several processes, each of which chooses from its own part of the batch."""

import copy

import pytest
import torch
import torch.distributed as dist
from baselines.flat import Flat
from baselines.selecting import METHODS, Losses, away, largest, spread
from distributed.fsdp import sharded
from distributed.processes import assert_same_everywhere, gathered, here
from distributed.training import share, whole, wrapped
from helpers import assert_same_state
from networks import mlp
from torch import nn
from torch.distributed.tensor import DTensor

from ausam_ext.baselines import ESAM

SIZE = 10  # samples of each process


def full(t):
    t = t.detach()
    return t.full_tensor() if isinstance(t, DTensor) else t


def expected(name, model, parts, drawn):
    """Of each process its losses, positions and losses there; the gradient of all. In one process."""
    flat = Flat(model)

    def gradient(at, chosen):
        return sum(flat.gradient(at, x[c], y[c]) for (x, y), c in zip(parts, chosen, strict=True)) / len(
            parts
        )

    before = [flat.losses(flat.w, *part) for part in parts]
    if name == "KSAM":
        chosen = [largest(b.tolist(), 0.4) for b in before]
        at = away(flat.w, gradient(flat.w, chosen), 0.3)
    else:
        at = away(flat.w, spread(model, drawn) * gradient(flat.w, [slice(None)] * len(parts)), 0.3 / 0.5)
    after = [flat.losses(at, *part) for part in parts]
    if name == "ESAM":
        chosen = [largest((a - b).tolist(), 0.4) for a, b in zip(after, before, strict=True)]
    return before, chosen, [a[c] for a, c in zip(after, chosen, strict=True)], gradient(at, chosen)


def assert_as_expected(name, wrap, steps=8):
    one = nn.Sequential(*mlp(torch.float64)).to(here())
    many, rank, world = wrap(one), dist.get_rank(), dist.get_world_size()
    sam, draws = METHODS[name](many), []
    optimizer = torch.optim.SGD(many.parameters(), lr=0.2)
    for step in range(steps):
        x, y = whole(step, SIZE * world)
        draws.append(sam.state_dict().get("drawn", torch.empty(0)).tolist())
        nn.utils.vector_to_parameters(
            torch.cat([full(p).flatten() for p in many.parameters()]), one.parameters()
        )
        parts = [(x[r::world], y[r::world]) for r in range(world)]
        before, chosen, after, gradient = expected(name, one, parts, draws[-1])

        results = sam.backward(Losses(many, *share(x, y)))
        assert sam.positions.tolist() == chosen[rank]
        got = torch.cat([full(p.grad).flatten() for p in many.parameters()])
        for a, b in zip((*results, got), (before[rank], after[rank], gradient), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        for p in many.parameters():
            p.grad.mul_(1.0)  # what a loop does to gradients that it leaves there does not matter
        optimizer.step()
    assert gathered(draws) == [draws] * world
    assert_same_everywhere([full(p) for p in many.parameters()])


def check_steps_of_replicas(folder):
    for name in METHODS:
        for options in ({}, {"gradient_as_bucket_view": True}, {"static_graph": True}):
            assert_as_expected(name, lambda m, options=options: wrapped(m, **options))


def check_steps_of_shards(folder):
    for name in METHODS:
        assert_as_expected(name, sharded_layers)


def sharded_layers(model):
    return sharded(nn.Sequential(*copy.deepcopy(model)))


def check_running_statistics(folder):
    """DDP hands out those of rank 0, which come from one pass of each step on all its samples."""
    start = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    for make in METHODS.values():
        model = wrapped(start)
        sam, optimizer = make(model), torch.optim.SGD(model.parameters(), lr=0.2)
        for step in range(6):
            x, y = share(*whole(step))
            plain = copy.deepcopy(model.module)
            plain(x)
            sam.backward(Losses(model, x, y))
            if dist.get_rank() == 0:
                assert_same_state(dict(model.module.named_buffers()), dict(plain.named_buffers()))
            optimizer.step()
        assert_same_everywhere(model.parameters())


def overflowing(model, step, bad_pass):
    """Losses whose gradient is infinite in that backward pass; in none if it is None."""
    losses, passes = (
        Losses(model, *(t.float() if t.is_floating_point() else t for t in share(*whole(step)))),
        [],
    )

    def call(positions):
        loss = losses(positions)
        if loss.requires_grad:
            if len(passes) == bad_pass:
                loss.register_hook(lambda g: g * float("inf"))
            passes.append(loss)
        return loss

    return call


def check_an_overflow_on_one_rank_skips_the_step_on_all(folder):
    for make in METHODS.values():
        for bad_pass in (0, 1):
            model, scaler = wrapped(mlp()), torch.amp.GradScaler(here().type, init_scale=8.0)
            sam, optimizer = make(model, scaler=scaler), torch.optim.SGD(model.parameters(), lr=0.2)
            for step, overflow in enumerate((False, True, False)):
                before = [p.detach().clone() for p in model.parameters()]
                here_too = overflow and dist.get_rank() == 1
                sam.backward(overflowing(model, step, bad_pass if here_too else None))
                assert gathered(bool(sam.overflow)) == [overflow] * dist.get_world_size()
                scaler.step(optimizer)
                scaler.update()
                equal = [torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
                assert all(equal) if overflow else not any(equal)
                assert_same_everywhere(model.parameters())


def check_what_differs_is_refused(folder):
    """Before anything is changed, in every process."""
    rank, x, y = dist.get_rank(), *share(*whole(0))
    for wrap in (wrapped, sharded_layers):
        for name, value in {"seed": rank, "beta": 0.5 + 0.1 * rank}.items():
            model = wrap(mlp(torch.float64))
            with pytest.raises(
                ValueError, match=f"^{name}: expected the same argument in every process, got"
            ):
                ESAM(model, **{name: value}).backward(Losses(model, x, y))
            assert all(p.grad is None for p in model.parameters())
    model = wrapped(mlp(torch.float64))
    loaded = ESAM(model)
    for _ in range(3):
        loaded.backward(Losses(model, x, y))
    for name in ("drawn", "generator"):
        esam = ESAM(model)
        state = esam.state_dict()
        if rank == 0:
            esam.load_state_dict({**state, name: loaded.state_dict()[name]})
        with pytest.raises(
            ValueError, match=f"^{name}: expected the same loaded state in every process, got"
        ):
            esam.backward(Losses(model, x, y))
        esam.load_state_dict(state)
        esam.backward(Losses(model, x, y))
