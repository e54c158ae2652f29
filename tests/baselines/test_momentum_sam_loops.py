"""Momentum-SAM in training loops: accumulation, layers with statistics, mixed precision, resuming."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from baselines.momentum import OPTIMIZERS, step
from helpers import assert_same_state
from networks import assert_untouched, batch, mlp, snapshot
from torch import nn

from ausam_ext.baselines import MomentumSAM


def test_one_pass_each_and_gradients_of_several_add_up(backend):
    model, (x, y), count = mlp(torch.float64), batch(dtype=torch.float64), Counter()
    model.register_forward_hook(lambda *_: count.update(["forward"]))
    model[-1].register_full_backward_hook(lambda *_: count.update(["backward"]))
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    msam = MomentumSAM(optimizer, 0.3)
    for seed in range(5):
        step(model, optimizer, msam, seed)
    assert count == {"forward": 5, "backward": 5}
    optimizer.zero_grad()
    with msam.perturbed():
        F.cross_entropy(model(x), y).backward()
    whole = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    for part in (slice(10), slice(10, None)):  # in two blocks, as the momentum is the same
        with msam.perturbed():
            (F.cross_entropy(model(x[part]), y[part]) / 2).backward()
    for p, g in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-15)


def test_running_statistics_are_those_of_the_one_pass(backend):
    model, x = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), batch()[0]
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    msam = MomentumSAM(optimizer, 0.3)
    step(model, optimizer, msam)
    twin = copy.deepcopy(model)
    with msam.perturbed():
        twin.load_state_dict(model.state_dict())
        twin(x), model(x)
    assert_same_state(dict(model.named_buffers()), dict(twin.named_buffers()))
    assert model[1].num_batches_tracked == 2


def test_within_one_autocast_block_each_pass_has_its_weights(backend):
    """Autocast keeps what it cast of weights that train until its block ends."""
    model, (x, _) = mlp(), batch()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    msam = MomentumSAM(optimizer, 1.0)
    step(model, optimizer, msam)

    def outputs():
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).detach()

    plain = outputs()
    with msam.perturbed():
        away = outputs()
    assert not torch.equal(plain, away)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), plain)
        with msam.perturbed():
            assert torch.equal(model(x), away)
        assert torch.equal(model(x), plain)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_overflow_skips_the_step_and_leaves_no_trace(backend, value):
    """Scaled by powers of two the run is bit for bit the unscaled one without that step."""
    a, b = mlp(), mlp()
    one, two = OPTIMIZERS["SGD"](a.parameters()), OPTIMIZERS["SGD"](b.parameters())
    first, second = MomentumSAM(one, 0.3), MomentumSAM(two, 0.3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for seed in range(6):
        x, y = batch(seed=seed)
        one.zero_grad()
        with first.perturbed():
            scaler.scale(F.cross_entropy(a(x), y) * (value if seed == 2 else 1.0)).backward()
        scaler.step(one)
        scaler.update()
        if seed != 2:
            step(b, two, second, seed)
        assert_same_state([a.state_dict(), one.state_dict()], [b.state_dict(), two.state_dict()])
    assert scaler.get_scale() == 4.0


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("stop", [1, 4])
def test_resumed_at_any_step_it_gives_the_same_bits(backend, tmp_path, name, stop):
    def start(seed):
        model = mlp(seed=seed)
        optimizer = OPTIMIZERS[name](model.parameters())
        return model, optimizer, MomentumSAM(optimizer, 0.3)

    run = start(0)
    for seed in range(stop):
        step(*run, seed)
    torch.save([part.state_dict() for part in run], tmp_path / "run.pt")
    other = start(1)
    for part, state in zip(other, torch.load(tmp_path / "run.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    for seed in range(stop, 8):
        step(*run, seed)
        step(*other, seed)
    assert_same_state([part.state_dict() for part in run], [part.state_dict() for part in other])


def test_parameters_that_come_later(backend):
    model = mlp()
    optimizer = OPTIMIZERS["SGD"](model[:3].parameters())
    msam = MomentumSAM(optimizer, 0.3)
    step(model, optimizer, msam)
    optimizer.add_param_group({"params": list(model[3:].parameters())})
    for seed in range(3):
        step(model, optimizer, msam, seed)
    before = snapshot(model)
    with msam.perturbed():
        assert all(not torch.equal(p, w) for p, (_, w) in zip(model.parameters(), before, strict=True))
    assert_untouched(model, before)
