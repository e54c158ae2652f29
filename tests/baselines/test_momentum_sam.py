"""Momentum-SAM: the gradient at w - rho v/||v||, for any optimizer that keeps momentum."""

import copy

import pytest
import torch
import torch.nn.functional as F
from baselines.momentum import OPTIMIZERS, gradient_at, momenta, norm_of, step
from helpers import assert_same_state, same_bits
from networks import assert_untouched, batch, mlp, snapshot
from sam.fused import CASES, Fused
from torch import nn

from ausam_ext.baselines import MomentumSAM


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_worked_step(backend, weight_decay):
    """L = (w1^2 + 4 w2^2)/2 at w = (3, 1) with v = (3, 4), rho .5, mu .9, lr .1.

    w~ = w - .5 (.6, .8) = (2.7, .6), g = (2.7, 2.4), d = g + wd w, v' = .9 v + d, w' = w - .1 v'.
    """
    w = nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=weight_decay)
    optimizer.state[w]["momentum_buffer"] = torch.tensor([3.0, 4.0], dtype=torch.float64)
    msam = MomentumSAM(optimizer, 0.5)
    with msam.perturbed():
        assert w.tolist() == pytest.approx([2.7, 0.6], abs=1e-12)
        ((w[0] ** 2 + 4 * w[1] ** 2) / 2).backward()
    assert w.tolist() == [3.0, 1.0] and w.grad.tolist() == pytest.approx([2.7, 2.4], abs=1e-12)
    optimizer.step()
    v, after = ([5.43, 6.01], [2.457, 0.399]) if weight_decay else ([5.4, 6.0], [2.46, 0.4])
    assert momenta(optimizer)[0].tolist() == pytest.approx(v, abs=1e-12)
    assert w.tolist() == pytest.approx(after, abs=1e-12)
    with msam.perturbed():
        if not weight_decay:
            assert w.tolist() == pytest.approx([2.1255176, 0.028352927], abs=5e-8)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradient_is_the_one_at_the_perturbed_weights(backend, name):
    model = mlp(torch.float64)
    optimizer = OPTIMIZERS[name](model.parameters())
    msam = MomentumSAM(optimizer, 0.3)
    for seed in range(4):
        x, y = batch(seed=seed, dtype=torch.float64)
        before = snapshot(model)
        weights = [w for _, w in before]
        if seed:
            v = momenta(optimizer)
            weights = [w - 0.3 * m / norm_of(v) for w, m in zip(weights, v, strict=True)]
        optimizer.zero_grad()
        with msam.perturbed():
            F.cross_entropy(model(x), y).backward()
        assert_untouched(model, before)
        for p, g in zip(model.parameters(), gradient_at(model, weights, x, y), strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-13)
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_radius_of_zero_is_the_optimizer_bit_for_bit(backend, name):
    a, b = mlp(), mlp()
    one, two = OPTIMIZERS[name](a.parameters()), OPTIMIZERS[name](b.parameters())
    msam = MomentumSAM(one, 0.0)
    for seed in range(5):
        step(a, one, msam, seed)
        step(b, two, None, seed)
    assert_same_state([a.state_dict(), one.state_dict()], [b.state_dict(), two.state_dict()])


@pytest.mark.parametrize(
    "name", ["SGD", "SGD foreach", "SGD fused", "Adam", "Adam fused", "AdamW", "RMSprop"]
)
def test_to_maximize_is_to_minimize_the_negative_bit_for_bit(backend, name):
    """The momentum of an optimizer that maximizes is of what it adds, with the sign turned."""
    a, b = mlp(), mlp()
    one, two = OPTIMIZERS[name](a.parameters(), maximize=True), OPTIMIZERS[name](b.parameters())
    first, second = MomentumSAM(one, 0.3), MomentumSAM(two, 0.3)
    for seed in range(4):
        step(a, one, first, seed, sign=-1.0)
        step(b, two, second, seed)
    assert all(same_bits(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_a_radius_of_the_next_move_is_nesterovs_momentum(backend, momentum):
    """rho = lr mu ||v||: the perturbed weights are those of torch.optim.SGD(nesterov=True)."""
    a, b = mlp(torch.float64), mlp(torch.float64)
    one = torch.optim.SGD(a.parameters(), lr=0.1, momentum=momentum)
    two = torch.optim.SGD(b.parameters(), lr=0.1, momentum=momentum, nesterov=True)
    msam = MomentumSAM(one)
    for seed in range(20):
        if seed:
            msam.rho = 0.1 * momentum * norm_of(momenta(one)).item()
        with msam.perturbed():
            for p, q in zip(a.parameters(), b.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=0, atol=2e-14)
        step(a, one, msam, seed)
        step(b, two, None, seed)


def test_nothing_is_perturbed_before_there_is_momentum(backend):
    model = mlp()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    before = snapshot(model)
    with MomentumSAM(optimizer).perturbed():
        assert_untouched(model, before)
    assert not any(optimizer.state.values())
    for value in (None, 0.0, torch.inf):  # nor if it has no direction; None is in states of older torch
        for p in model.parameters():
            optimizer.state[p]["momentum_buffer"] = None if value is None else torch.full_like(p, value)
        with MomentumSAM(optimizer).perturbed():
            assert_untouched(model, before)


def test_weights_without_momentum_and_frozen_ones_stay(backend):
    model = mlp()
    optimizer = torch.optim.SGD(
        [{"params": model[:3].parameters()}, {"params": model[3:].parameters(), "momentum": 0.0}],
        lr=0.1,
        momentum=0.9,
    )
    msam = MomentumSAM(optimizer, 0.3)
    step(model, optimizer, msam)
    model[0].requires_grad_(False)
    before = snapshot(model)
    with msam.perturbed():
        moved = [not torch.equal(p, w) for p, (_, w) in zip(model.parameters(), before, strict=True)]
        assert moved == [False, False, True, True, False, False]
        difference = [p.detach() - w for p, (_, w) in zip(model.parameters(), before, strict=True)]
        assert norm_of(difference).item() == pytest.approx(0.3, rel=1e-5)
    assert_untouched(model, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_weights_are_back_whatever_happens_inside(backend, dtype):
    model = mlp(dtype)
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    msam = MomentumSAM(optimizer, 0.3)
    step(model, optimizer, msam)
    before, state = snapshot(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ZeroDivisionError), msam.perturbed():
        assert any(not torch.equal(p, w) for p, (_, w) in zip(model.parameters(), before, strict=True))
        _ = 1 / 0
    assert_untouched(model, before)
    with msam.perturbed():
        for p in model.parameters():
            p.data.fill_(7)
    assert_untouched(model, before)
    assert_same_state(optimizer.state_dict(), state)
    step(model, optimizer, msam)  # and it goes on


@pytest.mark.parametrize("case", CASES)
def test_parameters_in_one_memory_are_one_weight(backend, case):
    """Whose momentum is the sum of theirs, scattered to where they lie."""
    numel, views = CASES[case]
    model, x = Fused(numel, views), torch.randn(numel, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).backward()
    optimizer.step()
    before, v = model.flat.clone(), torch.zeros(numel, dtype=torch.float64)
    for view, m in zip(views, momenta(optimizer), strict=True):
        view(v).add_(m)
    with MomentumSAM(optimizer, 0.3).perturbed():
        torch.testing.assert_close(model.flat, before - 0.3 * v / v.norm(), rtol=1e-12, atol=1e-14)
    assert same_bits(model.flat, before)
