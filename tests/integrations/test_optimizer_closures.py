"""SAMOptimizer's closure: what it has to leave in .grad, and what is said if it does not."""

import pytest
import torch
import torch.nn.functional as F
from helpers import same_bits
from integrations.loops import same_weights, sgd, zeroing
from networks import assert_untouched, batch, closure_of, mlp, snapshot
from torch import nn

from ausam_ext import SAM, VSAM, misuse
from ausam_ext.integrations import SAMOptimizer


def test_step_without_a_closure_says_what_to_do():
    model, (x, y) = mlp(), batch()
    optimizer = SAMOptimizer(sgd(model), SAM(model))
    closure_of(model, x, y)()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"step\(\): SAM runs the closure twice; .*sam.perturbed\(\)"):
        optimizer.step()
    assert_untouched(model, before)


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)])
def test_nor_is_it_done_at_a_rate_of_zero(lr):
    """Where a schedule begins. Only what changes nothing but the state is done without a closure."""
    model, (x, y) = mlp(), batch()
    optimizer = SAMOptimizer(torch.optim.Adam(model.parameters(), lr=lr, foreach=False), SAM(model))
    with pytest.raises(RuntimeError, match=r"step\(\): SAM runs the closure twice"):
        optimizer.step()  # no gradients at all
    closure_of(model, x, y)()
    with pytest.raises(RuntimeError, match=r"step\(\): SAM runs the closure twice"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"step\(\): SAM runs the closure twice"):
        optimizer.step()  # has a state now


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("adapted", [True, False])
def test_a_closure_that_gives_no_gradient(method, adapted, in_place):
    """To every optimizer of PyTorch that is a step which does nothing, of which its hooks hear."""
    model, (x, y), seen = mlp(), batch(), []
    base = sgd(model, momentum=0) if in_place else sgd(model, weight_decay=0.1)
    sam = method(model)
    optimizer = SAMOptimizer(base, sam) if adapted else base
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        optimizer.zero_grad(set_to_none=not in_place)
        return F.cross_entropy(model(x), y)

    closure_of(model, x, y)()
    before, expected = snapshot(model), F.cross_entropy(model(x), y)
    for _ in range(2):
        assert same_bits(optimizer.step(closure), expected)
    assert_untouched(model, before)
    assert seen == ["before", "after"] * 2 and not optimizer.state
    if adapted:
        assert optimizer.loss_perturbed is None and sam not in misuse.INSIDE
        if isinstance(sam, VSAM):
            assert sam.state_dict()["progress"] == [0, 0, 0, 0]  # no iteration has ended
        optimizer.step(zeroing(optimizer, model, x, y))
        assert optimizer.loss_perturbed is not None


def test_zeros_that_the_closure_leaves_are_no_gradient(method):
    """The plain optimizer steps with them: weight decay acts."""
    weights = []
    for adapted in (True, False):
        model, loss = mlp(), torch.tensor(3.0)
        base = sgd(model, weight_decay=0.1)
        optimizer = SAMOptimizer(base, method(model)) if adapted else base
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        assert optimizer.step(lambda loss=loss: loss) == 3.0
        weights.append(model)
    assert same_weights(*weights) and not same_weights(weights[0], mlp())
    model[0].bias.grad = torch.ones(16)  # which no backward pass of the closure gives
    with pytest.raises(RuntimeError, match=r"no backward\(\) ran inside"):
        SAMOptimizer(base, method(model)).step(lambda: loss)


def test_what_a_frozen_weight_still_holds_is_no_gradient(method):
    model, (x, y) = mlp(), batch()
    base = torch.optim.SGD(model[4].parameters(), lr=0.1)
    optimizer = SAMOptimizer(base, method(model))
    model[2].bias.requires_grad_(False).grad = torch.ones(16)
    before = snapshot(model)
    optimizer.step(lambda: F.cross_entropy(model(x), y))
    assert_untouched(model, before)


def test_one_gradient_is_enough_for_both_passes(method):
    """Also that of a weight which the optimizer does not train; a second pass without any is refused."""
    model, (x, y), calls = mlp(), batch(), []
    optimizer = SAMOptimizer(torch.optim.SGD(model[4].parameters(), lr=0.1), method(model))

    def closure():
        calls.append(0)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if len(calls) == 1:
            model[0].bias.grad = torch.autograd.grad(loss, model[0].bias)[0]
        return loss

    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"perturbed\(\): no backward\(\) ran inside"):
        optimizer.step(closure)
    assert len(calls) == 2
    assert_untouched(model, before)


def test_weights_that_sam_was_not_given_are_named_once():
    model, centres, (x, y) = mlp(), nn.Linear(2, 3), batch()
    both = [*model.named_parameters(), *((f"centres.{n}", p) for n, p in centres.named_parameters())]
    with pytest.warns(UserWarning, match=r"^optimizer: .* got also centres\.weight, centres\.bias, ") as seen:
        SAMOptimizer(torch.optim.SGD(both, lr=0.1), SAM(model))
    assert len(seen) == 1 and seen[0].filename == __file__
    many = [{"params": model.parameters()}, {"params": [nn.Parameter(torch.ones(2, i)) for i in range(12)]}]
    name = r'param_groups\[1\]\["params"\]\[{0}\] of shape \(2, {0}\)'
    named = f"got also {', '.join(name.format(i) for i in range(10))}, and 2 more, "
    with pytest.warns(UserWarning, match=named):
        SAMOptimizer(torch.optim.SGD(many, lr=0.1), SAM(model))
    optimizer = SAMOptimizer(sgd(model), SAM(model))
    with pytest.warns(UserWarning, match=named) as seen:
        optimizer.add_param_group({"params": many[1]["params"]})
    assert len(seen) == 1 and seen[0].filename == __file__
    optimizer.step(zeroing(optimizer, model, x, y))  # said once


@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_of_earlier_batches_are_not_mixed_into_one_pass(method, in_place):
    """A loop that accumulates outside the closure would have them in the first pass and not in the second."""
    model, (x, y) = mlp(), batch()
    optimizer = SAMOptimizer(sgd(model), method(model))

    def accumulate():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    before = snapshot(model)
    accumulate()
    with pytest.raises(RuntimeError, match="the closure did not clear the gradients"):
        optimizer.step(accumulate)
    assert_untouched(model, before)
    optimizer.zero_grad(set_to_none=not in_place)
    optimizer.step(accumulate)  # cleared before the step does as well: there is nothing to mix

    def closure():
        optimizer.zero_grad(set_to_none=not in_place)
        return accumulate()

    for _ in range(3):
        optimizer.step(closure)
    optimizer.step(closure_of(model, x, y))  # model.zero_grad()


def test_the_closure_runs_with_gradients_also_where_the_loop_has_none(method):
    model, (x, y) = mlp(), batch()
    optimizer = SAMOptimizer(sgd(model), method(model))
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        optimizer.step(closure_of(model, x, y))
    assert not torch.equal(model[0].weight, before)


def test_an_exception_in_the_closure_leaves_everything(method):
    model, (x, y), calls = mlp(), batch(), []
    optimizer = SAMOptimizer(sgd(model), method(model))

    def closure():
        calls.append(0)
        if len(calls) == 2:
            raise ZeroDivisionError
        return closure_of(model, x, y)()

    before = snapshot(model)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert_untouched(model, before)
    assert not optimizer.state


def test_what_the_optimizer_does_not_train_is_cleared_too(method):
    """Its gradient is part of the direction, and what the last step left would add up in it."""
    model, twin, (x, y) = mlp(), mlp(), batch()
    optimizer = SAMOptimizer(torch.optim.SGD(model[4].parameters(), lr=0.1), method(model))
    plain, sam = torch.optim.SGD(twin[4].parameters(), lr=0.1), method(twin)
    for _ in range(4):
        optimizer.step(zeroing(optimizer, model, x, y))
        sam.backward(closure_of(twin, x, y))  # model.zero_grad()
        plain.step()
        assert same_weights(model, twin)
