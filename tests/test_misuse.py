"""Mistakes that would train something else without a word: each is an error that says what to do."""

import pytest
import torch
import torch.nn.functional as F
from test_sam import assert_untouched, batch, closure_of, mlp, snapshot

from ausam_ext import SAM, VSAM

METHODS = {"SAM": SAM, "VSAM": lambda m: VSAM(m, warmup_steps=5)}


@pytest.fixture(params=METHODS)
def sam_of(request):
    return METHODS[request.param]


def test_a_second_backward_that_never_ran(sam_of):
    """Else the optimizer would step by nothing, or by the gradient of the first pass."""
    model, (x, y) = mlp(), batch()
    before, sam = snapshot(model), sam_of(model)
    closure_of(model, x, y)()
    with pytest.raises(RuntimeError, match=r"no backward\(\) ran inside"), sam.perturbed():
        F.cross_entropy(model(x), y)
    assert_untouched(model, before)
    sam.backward(closure_of(model, x, y))  # and it goes on


def test_an_exception_inside_is_not_replaced_by_that_message(sam_of):
    model, (x, y) = mlp(), batch()
    closure_of(model, x, y)()
    with pytest.raises(ZeroDivisionError), sam_of(model).perturbed():
        _ = 1 / 0


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_an_optimizer_that_steps_inside_the_perturbation(sam_of, fused, scaled):
    """What it changes would be lost when the weights come back."""
    model, (x, y) = mlp(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    before, sam = snapshot(model), sam_of(model)
    closure_of(model, x, y)()
    with pytest.raises(RuntimeError, match=r"optimizer.step\(\) inside perturbed\(\)"), sam.perturbed():
        model.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        scaler.step(optimizer)
    assert_untouched(model, before)
    optimizer.step()  # outside it is free again


def test_an_optimizer_of_other_weights_may_step_inside(sam_of):
    """As a discriminator's may, inside the generator's perturbation."""
    model, other, (x, y) = mlp(), mlp(seed=1), batch()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    closure_of(model, x, y)()
    with sam_of(model).perturbed():
        closure_of(other, x, y)()
        before = other[0].weight.detach().clone()
        optimizer.step()
        assert not torch.equal(other[0].weight, before)
        closure_of(model, x, y)()


def test_two_networks_may_be_perturbed_at_once(sam_of):
    a, b, (x, y) = mlp(), mlp(seed=1), batch()
    before = [snapshot(a), snapshot(b)]
    closure_of(a, x, y)()
    closure_of(b, x, y)()
    with sam_of(a).perturbed(), sam_of(b).perturbed():
        closure_of(a, x, y)()
        closure_of(b, x, y)()
    assert_untouched(a, before[0])
    assert_untouched(b, before[1])


def test_per_process_needs_the_wrapper():
    model, (x, y) = mlp(), batch()
    with pytest.raises(TypeError, match=r"per_process: .*DistributedDataParallel.*Sequential"):
        SAM(model).backward(closure_of(model, x, y), per_process=True)
    assert all(p.grad is None for p in model.parameters())
