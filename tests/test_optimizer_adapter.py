"""SAMOptimizer: to schedulers, hooks, checkpoints and loops it is the optimizer that it wraps."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import same_bits
from test_sam import assert_untouched, batch, closure_of, mlp, snapshot
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook

from ausam_ext import ADLP, SAM, VSAM, misuse
from ausam_ext.integrations import SAMOptimizer

METHODS = {
    "SAM": lambda m, **kw: SAM(m, 0.3, **kw),
    # Both kinds of iteration within a few steps.
    "VSAM": lambda m, **kw: VSAM(m, 0.3, warmup_steps=2, window=4, slices=2, initial_samples=2, seed=3, **kw),
}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def same_weights(a, b):
    return all(same_bits(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def zeroing(optimizer, model, x, y):
    """A closure as in PyTorch's documentation."""

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def option(name, **options):
    return pytest.param(lambda p: getattr(torch.optim, name)(p, **options), id=f"{name} {options}")


OPTIMIZERS = [
    option("SGD", lr=0.1, momentum=0.9),
    option("SGD", lr=0.1, momentum=0.9, fused=True),
    option("Adam", lr=0.01, fused=True),
    option("Adam", lr=0.01, foreach=True),
    option("AdamW", lr=torch.tensor(0.01), fused=True),
    option("AdamW", lr=0.01, foreach=False),
    option("RMSprop", lr=0.01, centered=True),
    option("NAdam", lr=0.01),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_step_is_both_passes_and_the_step_of_the_optimizer(method, make):
    model, plain, (x, y) = mlp(), mlp(), batch()
    optimizer = SAMOptimizer(make(model.parameters()), method(model))
    sam, theirs = method(plain), make(plain.parameters())
    second = []
    for _ in range(10):
        loss = optimizer.step(zeroing(optimizer, model, x, y))
        expected, expected_perturbed = sam.backward(zeroing(theirs, plain, x, y))
        theirs.step()
        assert same_bits(loss, expected) and not loss.requires_grad
        second.append(expected_perturbed is not None)
        assert (optimizer.loss_perturbed is not None) == second[-1]
        if second[-1]:
            assert same_bits(optimizer.loss_perturbed, expected_perturbed)
        assert same_weights(model, plain)
    assert len(set(second)) == (2 if isinstance(sam, VSAM) else 1)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RMSprop"])
def test_capturable_optimizers(name):
    """On the CPU torch refuses to step them: what it says arrives unchanged; the flag is the optimizer's."""
    model, (x, y) = mlp(), batch()
    optimizer = SAMOptimizer(getattr(torch.optim, name)(model.parameters(), capturable=True), SAM(model))
    assert optimizer.param_groups[0]["capturable"] and optimizer.defaults["capturable"]
    before = snapshot(model)
    with pytest.raises((AssertionError, RuntimeError), match="apturable"):
        optimizer.step(closure_of(model, x, y))
    assert_untouched(model, before)


def test_lbfgs_is_refused_with_the_reason():
    model = mlp()
    with pytest.raises(TypeError, match="optimizer: LBFGS calls its closure many times"):
        SAMOptimizer(torch.optim.LBFGS(model.parameters()), SAM(model))


def test_arguments_are_checked():
    model = mlp()
    with pytest.raises(TypeError, match=r"optimizer: expected a torch\.optim\.Optimizer, got Sequential"):
        SAMOptimizer(model, SAM(model))
    with pytest.raises(TypeError, match="sam: expected a SAM or VSAM, got Sequential"):
        SAMOptimizer(sgd(model), model)
    with pytest.raises(ValueError, match="parameters of the model that sam was made with, got none"):
        SAMOptimizer(sgd(model), SAM(mlp()))
    with pytest.raises(TypeError, match="same_mask"):
        SAMOptimizer(sgd(model), SAM(model), same_mask=True)


def test_options_reach_both_passes():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    (x, y), drawn = batch(), []
    model[0].register_forward_hook(lambda module, args, output: drawn.append(output))
    optimizer = SAMOptimizer(sgd(model), SAM(model), same_masks=True)
    optimizer.step(closure_of(model, x, y))
    assert len(drawn) == 2 and torch.equal(*drawn)


def test_groups_state_and_defaults_are_the_same_objects(method):
    model, (x, y) = mlp(), batch()
    base = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    optimizer = SAMOptimizer(base, method(model))
    optimizer.add_param_group({"params": model[4].parameters(), "lr": 0.5})
    for _ in range(2):
        assert optimizer.param_groups is base.param_groups and len(base.param_groups) == 2
        assert optimizer.state is base.state and optimizer.defaults is base.defaults
        optimizer.step(closure_of(model, x, y))
        optimizer.load_state_dict(optimizer.state_dict())
    frozen = model[2].weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = snapshot(model)
    optimizer.step(closure_of(model, x, y))
    assert_untouched(model, before)
    assert torch.equal(model[2].weight, frozen)  # in no group
    assert isinstance(optimizer, torch.optim.Optimizer) and "SGD" in repr(optimizer)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: CosineAnnealingLR(o, 5),
        lambda o: OneCycleLR(o, max_lr=[0.2, 0.4], total_steps=6),  # also changes the momentum
        lambda o: ReduceLROnPlateau(o, patience=0),
    ],
)
def test_schedulers_attach_to_the_adapter(method, schedule):
    rates = []
    weights = []
    for adapted in (True, False):
        model, (x, y) = mlp(), batch()
        base = sgd(model)
        base.param_groups[0]["params"] = list(model[0].parameters())
        base.add_param_group({"params": [*model[2].parameters(), *model[4].parameters()], "lr": 0.3})
        sam = method(model)
        optimizer = SAMOptimizer(base, sam) if adapted else base
        scheduler, seen = schedule(optimizer), []
        for _ in range(5):
            if adapted:
                optimizer.step(zeroing(optimizer, model, x, y))
            else:
                sam.backward(zeroing(optimizer, model, x, y))
                optimizer.step()
            scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
            seen.append([(g["lr"], g["momentum"]) for g in base.param_groups])
        rates.append(seen)
        weights.append(model)
    assert rates[0] == rates[1] and rates[0][0] != rates[0][-1]
    assert same_weights(*weights)


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


def test_hooks_run_once_with_the_sam_gradient(method):
    """Those of one optimizer and those of all; there a loop with closures clips."""
    model, (x, y), seen, everywhere = mlp(), batch(), [], []
    optimizer = SAMOptimizer(sgd(model, momentum=0), method(model))
    free = mlp()
    METHODS["SAM"](free).backward(closure_of(free, x, y))
    norm = torch.cat([p.grad.flatten() for p in free.parameters()]).norm()

    def clip(wrapped, args, kwargs):
        seen.append(nn.utils.clip_grad_norm_(model.parameters(), 0.01))

    optimizer.register_step_pre_hook(clip)
    hook = register_optimizer_step_post_hook(lambda *_: everywhere.append(0))
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    optimizer.step(closure_of(model, x, y))
    hook.remove()
    torch.testing.assert_close(seen, [norm])
    assert len(everywhere) == 1
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    torch.testing.assert_close(moved.norm(), torch.tensor(0.1 * 0.01), rtol=1e-3, atol=0)


def test_the_groups_say_which_neighbour_is_the_worst(method):
    """Also those that are added or loaded later."""
    lowered, raised, (x, y) = mlp(torch.float64), mlp(torch.float64), batch(dtype=torch.float64)
    start = [torch.optim.SGD(m[:2].parameters(), lr=0.1, maximize=m is raised) for m in (lowered, raised)]
    optimizers = [SAMOptimizer(o, method(m)) for o, m in zip(start, (lowered, raised), strict=True)]
    for o, m in zip(optimizers, (lowered, raised), strict=True):
        o.add_param_group({"params": m[2:].parameters()})
    assert [o.sam.maximize for o in optimizers] == [False, True]
    for _ in range(4):
        for o, m, sign in zip(optimizers, (lowered, raised), (1, -1), strict=True):

            def closure(o=o, m=m, sign=sign):
                o.zero_grad()
                loss = sign * F.cross_entropy(m(x), y)
                loss.backward()
                return loss

            o.step(closure)
    for a, b in zip(lowered.parameters(), raised.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    optimizers[0].load_state_dict(optimizers[1].state_dict())
    assert optimizers[0].sam.maximize
    both = [{"params": lowered[:2].parameters()}, {"params": lowered[2:].parameters(), "maximize": True}]
    with pytest.raises(ValueError, match="optimizer: expected one value of maximize"):
        SAMOptimizer(torch.optim.SGD(both, lr=0.1), method(lowered))


def test_both_losses_feed_the_table():
    model, (x, y) = mlp(), batch()
    optimizer, adlp = SAMOptimizer(sgd(model), SAM(model)), ADLP(20)
    loss = optimizer.step(closure_of(model, x, y))  # per-sample
    adlp.update(torch.arange(20), loss, optimizer.loss_perturbed)
    assert torch.equal(adlp.mean(), (optimizer.loss_perturbed - loss).abs())


def test_a_scaler_steps_the_optimizer_and_skips_it_after_an_overflow(method):
    model, plain, (x, y) = mlp(), mlp(), batch()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer = SAMOptimizer(sgd(model), method(model, scaler=scaler))
    exact = SAMOptimizer(sgd(plain), method(plain))
    factor = 1.0

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        scaler.scale(loss * factor).backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        scaler.update()
        exact.step(zeroing(exact, plain, x, y))
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    factor, before = float("inf"), snapshot(model)
    optimizer.step(closure)
    scaler.update()
    assert_untouched(model, before)
    assert scaler.get_scale() == 128.0


def test_nothing_is_imported_unless_asked():
    code = (
        "import sys, ausam_ext; assert 'ausam_ext.integrations' not in sys.modules; "
        "import ausam_ext.integrations; "
        "assert not {'lightning', 'pytorch_lightning', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
