"""ESAM and K-SAM in training loops: mixed precision, defaults of torch, resuming."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from baselines.selecting import Losses, gradients
from helpers import assert_same_state, assert_unchanged, same_bits
from networks import batch, mlp
from sam.scaling import assert_close, scaler
from torch import nn

INF = float("inf")


def test_losses_are_returned_as_they_were(make):
    """Compiled code may give every pass the same memory for its result."""
    model, given, last = mlp(), [], []

    def losses(positions):
        for loss in last:
            loss.data.fill_(torch.nan)
        loss = Losses(model, *batch())(positions)
        given.append(loss.detach().clone())
        last[:] = [loss]
        return loss

    assert_same_state(make(model).backward(losses), (given[0], given[2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_autocast_block_around_the_step(make, dtype):
    """Autocast keeps its casts until the block ends: of other weights, or without a gradient."""
    (x, y), results = batch(), []
    for outside in (False, True):
        model = mlp()
        sam = make(model)

        def losses(positions, model=model, outside=outside):
            with nullcontext() if outside else torch.autocast("cpu", dtype):
                return Losses(model, x, y)(positions)

        for _ in range(3):
            with torch.autocast("cpu", dtype) if outside else nullcontext():
                both = sam.backward(losses)
            results.append([*both, sam.positions, *gradients(model)])
    assert_same_state(results[:3], results[3:])
    assert all(g is not None and g.any() for g in results[0][3:])


def test_gradients_are_computed_also_under_no_grad(make):
    model, twin = mlp(), mlp()
    with torch.no_grad():
        make(model).backward(Losses(model, *batch()))
    make(twin).backward(Losses(twin, *batch()))
    assert_same_state(gradients(model), gradients(twin))


class Scaled:
    """A training loop with a GradScaler."""

    def __init__(self, make, scaler):
        self.model, self.scaler = mlp(), scaler
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.sam = make(self.model, scaler=scaler)

    def step(self, x, y, factors=(1.0, 1.0)):
        """``factors``: of the gradients of each backward, as a scale that is too large makes them."""
        left = list(factors)

        def losses(positions):
            loss = Losses(self.model, x, y)(positions)
            if loss.requires_grad:
                factor = left.pop(0)
                loss.register_hook(lambda g: g * factor)
            return loss

        self.losses = self.sam.backward(losses)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        self.gradient = [g.clone() for g in gradients(self.model)]
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


def test_scaling_changes_nothing_but_rounding(backend, make):
    plain, scaled = Scaled(make, None), Scaled(make, scaler(2.0**20, growth_interval=1))
    for step in range(8):
        for loop in (plain, scaled):
            loop.step(*batch(seed=step))
        assert plain.sam.overflow is None and scaled.sam.overflow.item() is False
        assert torch.equal(plain.sam.positions, scaled.sam.positions)
        assert_close(scaled.gradient, plain.gradient, 1e-5)
        assert_close(scaled.losses, plain.losses, 1e-5)


@pytest.mark.parametrize("factors", [(INF, 1.0), (1.0, INF), (INF, INF), (float("nan"), 1.0)])
def test_an_overflow_in_either_pass_skips_the_step(backend, make, factors):
    loop, twin = Scaled(make, scaler()), Scaled(make, scaler())
    for each in (loop, twin):
        each.step(*batch(seed=0))
    before = [p.detach().clone() for p in loop.model.parameters()]
    momentum = copy.deepcopy(loop.optimizer.state_dict()["state"])

    loop.step(*batch(seed=1), factors)
    assert loop.sam.overflow.item() is True and loop.scaler.get_scale() == 2.0**15
    assert all(map(same_bits, loop.model.parameters(), before))
    assert_same_state(loop.optimizer.state_dict()["state"], momentum)

    twin.sam.load_state_dict(loop.sam.state_dict())  # the iteration has ended all the same
    for each in (loop, twin):
        each.step(*batch(seed=2))
    assert loop.sam.overflow.item() is False
    assert_close(loop.gradient, twin.gradient, 1e-5)


def test_defaults_of_torch(default, backend, make):
    def work():
        with torch.device("cpu"):
            torch.manual_seed(0)
            layers = [nn.Linear(6, 8, dtype=torch.float32), nn.BatchNorm1d(8, dtype=torch.float32)]
            model = nn.Sequential(*layers, nn.Linear(8, 3, dtype=torch.float32))
            x, y = torch.randn(40, 6, dtype=torch.float32), torch.randint(0, 3, (40,))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sam, results = make(model), []
        for _ in range(8):
            results.append([*sam.backward(Losses(model, x, y)), sam.positions])
            optimizer.step()
            sam.load_state_dict(sam.state_dict())
        return {"results": results, "model": dict(model.state_dict()), "sam": sam.state_dict()}

    assert_unchanged(work, default)


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("how", ["state", "pickle"])
def test_resumed_at_any_step_it_trains_the_same_bits(tmp_path, make, steps, how):
    def training():
        torch.manual_seed(0)
        layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)]
        model = nn.Sequential(*layers)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return {"model": model, "optimizer": optimizer, "sam": make(model)}

    def train(parts, first, last):
        for step in range(first, last):
            parts["sam"].backward(Losses(parts["model"], *batch(seed=step)))
            parts["optimizer"].step()

    def state(parts):
        return {name: part.state_dict() for name, part in parts.items()}

    whole = training()
    train(whole, 0, 10)
    stopped = training()
    train(stopped, 0, steps)
    if how == "pickle":
        resumed = pickle.loads(pickle.dumps(stopped))
    else:
        torch.save({**state(stopped), "rng": torch.get_rng_state()}, tmp_path / "state")
        saved = torch.load(tmp_path / "state", weights_only=True)
        resumed = training()
        for name, part in resumed.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"])
    train(resumed, steps, 10)
    assert_same_state(state(resumed), state(whole))
