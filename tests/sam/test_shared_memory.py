"""Weights and gradients that share memory with each other, with a flat buffer or with what the loop keeps."""

import pytest
import torch
import torch.nn.functional as F
from helpers import same_bits
from networks import batch, closure_of, mlp
from sam.fused import CASES, Fused
from torch import nn

from ausam_ext import SAM, VSAM

METHODS = {
    "SAM": SAM,
    "adaptive": lambda m, rho, **kw: SAM(m, rho, adaptive=True, **kw),
    "VSAM": lambda m, rho, **kw: VSAM(m, rho, warmup_steps=99, **kw),
}


def by_hand(model, views, x, rho, adaptive):
    """One SAM step on the one tensor, in float64, only by autograd: the perturbed tensor."""
    w = model.flat.clone().requires_grad_()
    (g,) = torch.autograd.grad(
        sum(((i + 1) * v(w).flatten() * x[: v(w).numel()]).sin().sum() for i, v in enumerate(views)), w
    )
    scaled = w.detach().abs() * g if adaptive else g
    step = w.detach().abs() * scaled if adaptive else scaled
    return w.detach() + rho * step / (scaled.norm() + 1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grouped", [False, True])
def test_parameters_in_one_memory_are_one_weight(backend, case, method, grouped):
    numel, views = CASES[case]
    model, x, rho = Fused(numel, views), torch.linspace(-2, 2, 24, dtype=torch.float64), 0.3
    groups = [{"params": model.parts, "rho": rho}] if grouped else ()
    sam = METHODS[method](model, 9.0 if grouped else rho, groups=groups)
    start = model.flat.clone()
    expected = by_hand(model, views, x, rho, method == "adaptive")
    for _ in range(10):
        model.zero_grad()
        model(x).backward()
        with sam.perturbed():
            torch.testing.assert_close(model.flat, expected, rtol=1e-12, atol=1e-12)
            model(x).backward()
        assert same_bits(model.flat, start)
    model.zero_grad()
    model(x).backward()
    with pytest.raises(ZeroDivisionError), sam.perturbed():
        _ = 1 / 0
    assert same_bits(model.flat, start)


def test_a_layer_that_is_tied_after_sam_was_made(backend):
    model = nn.Sequential(nn.Linear(8, 5, bias=False), nn.Linear(5, 8, bias=False)).double()
    sam, x = SAM(model, 0.5), torch.randn(16, 8, dtype=torch.float64)
    for tied in (False, True):
        if tied:
            model[1].weight.data = model[0].weight.data.t()
        before = [p.detach().clone() for p in model.parameters()]
        model.zero_grad()
        F.mse_loss(model(x), x).backward()
        with sam.perturbed():
            moved = (model[0].weight - before[0]).norm()
            F.mse_loss(model(x), x).backward()
        assert all(same_bits(p, b) for p, b in zip(model.parameters(), before, strict=True))
        assert tied == bool(torch.isclose(moved, torch.tensor(0.5, dtype=torch.float64)))


def test_radii_that_contradict_each_other_are_refused():
    numel, views = CASES["transposed"]
    model = Fused(numel, views)
    sam = SAM(model, 0.1, groups=[{"params": [model.parts[0]], "rho": 0.2}])
    model(torch.ones(24, dtype=torch.float64)).backward()
    before = model.flat.clone()
    with pytest.raises(ValueError, match=r"groups: expected one rho for parameters that share memory"):
        sam.perturbed().__enter__()
    assert same_bits(model.flat, before)
    sam.groups[0]["rho"] = 0.1
    with sam.perturbed():
        model(torch.ones(24, dtype=torch.float64)).backward()


def expected_gradients(model, x, y, rho):
    """Gradients of both passes, by a SAM that has gradients of its own."""
    other = mlp(torch.float64)
    other.load_state_dict(model.state_dict())
    closure_of(other, x, y)()
    first = [p.grad.clone() for p in other.parameters()]
    with SAM(other, rho).perturbed():
        closure_of(other, x, y)()
    return first, [p.grad for p in other.parameters()]


def flat_gradients(model, view):
    """One buffer, and a function that puts views of it in place of the gradients."""
    flat = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)

    def place():
        at = 0
        for p in model.parameters():
            p.grad = view(flat[at : at + p.numel()].view_as(p))
            at += p.numel()

    return flat, place


VIEWS = {"view": lambda t: t, "detach": lambda t: t.detach(), "data": lambda t: t.data}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("placed", ["once", "always"])
def test_vsam_with_gradients_that_are_views_of_one_buffer(backend, view, placed):
    """Cleared and filled again each step: the PSF must lie elsewhere. At lr 0 it is the same each time."""
    model, (x, y) = mlp(torch.float64), batch(dtype=torch.float64)
    flat, place = flat_gradients(model, view)
    vsam = VSAM(model, 0.5, gamma=1.0, warmup_steps=1)
    first, second = expected_gradients(model, x, y, 0.5)
    place()
    for step in range(3):
        flat.zero_()
        if placed == "always":
            place()
        F.cross_entropy(model(x), y).backward()
        if vsam.decide():
            with vsam.perturbed():
                F.cross_entropy(model(x), y).backward()
        else:
            vsam.reuse_()
        assert vsam.sampled == (step == 0)
        for p, b in zip(model.parameters(), second, strict=True):
            torch.testing.assert_close(p.grad, b)  # g + (g_SAM - g)
        torch.testing.assert_close(flat, torch.cat([b.flatten() for b in second]))
    assert not torch.allclose(first[0], second[0], rtol=1e-3)


@pytest.mark.parametrize("make", [SAM, lambda m, rho: VSAM(m, rho, warmup_steps=5)])
def test_an_optimizer_of_one_flat_parameter_steps_with_the_second_gradient(backend, make):
    model, (x, y) = mlp(torch.float64), batch(dtype=torch.float64)
    _, second = expected_gradients(model, x, y, 0.5)
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
    flat.grad, at = torch.zeros_like(flat), 0
    for p in model.parameters():
        p.data = flat.data[at : at + p.numel()].view_as(p)
        p.grad = flat.grad[at : at + p.numel()].view_as(p)
        at += p.numel()
    before = flat.detach().clone()
    optimizer = torch.optim.SGD([flat], lr=0.1)
    sam = make(model, 0.5)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(model(x), y).backward()
        with sam.perturbed():
            F.cross_entropy(model(x), y).backward()
        torch.testing.assert_close(flat.grad, torch.cat([g.flatten() for g in second]))
    optimizer.step()
    torch.testing.assert_close(flat.detach(), before - 0.1 * torch.cat([g.flatten() for g in second]))


def test_flat_gradients_without_a_second_backward_pass_are_noticed():
    model, (x, y) = mlp(torch.float64), batch(dtype=torch.float64)
    _, place = flat_gradients(model, lambda t: t)
    place()
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match=r"no backward\(\) ran inside"), SAM(model).perturbed():
        pass


@pytest.mark.parametrize("make", [SAM, lambda m, rho: VSAM(m, rho, gamma=1.0, warmup_steps=2)])
def test_gradients_that_the_loop_kept_stay_as_they_are(backend, make):
    model, (x, y) = mlp(), batch()
    sam = make(model, 0.3)
    kept = []
    for _ in range(3 if isinstance(sam, VSAM) else 2):
        closure_of(model, x, y)()
        kept.append([p.grad for p in model.parameters()])
        copies = [g.clone() for g in kept[-1]]
        if not isinstance(sam, VSAM) or sam.decide():
            with sam.perturbed():
                closure_of(model, x, y)()
            assert all(same_bits(g, c) for g, c in zip(kept[-1], copies, strict=True))
        else:
            sam.reuse_()
    assert all(same_bits(g, c) for g, c in zip(kept[0], kept[1], strict=True))  # no step was taken
