"""SAMOptimizer: to schedulers, hooks, checkpoints and loops it is the optimizer that it wraps."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state, same_bits
from test_sam import assert_untouched, batch, closure_of, mlp, snapshot
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook

from ausam_ext import ADLP, SAM, VSAM
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


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_saved_run_goes_on_bit_for_bit(method, stop):
    """Moments, and for vSAM the PSF, the rate and the decisions; read back as `weights_only`."""
    (x, y), make = batch(), lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, amsgrad=True)
    whole = mlp()
    optimizer = SAMOptimizer(make(whole), method(whole))
    for step in range(10):
        if step == stop:
            file = io.BytesIO()
            torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
        optimizer.step(zeroing(optimizer, whole, x, y))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = mlp(seed=5)
    other = SAMOptimizer(make(resumed), method(resumed))
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert_same_state(other.state_dict(), saved["optimizer"])
    for _ in range(stop, 10):
        other.step(zeroing(other, resumed, x, y))
    assert same_weights(resumed, whole)
    assert_same_state(other.state_dict(), optimizer.state_dict())


def test_a_state_without_that_of_vsam_is_refused():
    model = mlp()
    optimizer = SAMOptimizer(sgd(model), METHODS["VSAM"](model))
    with pytest.raises(KeyError, match="sam: the state of VSAM is missing"):
        optimizer.load_state_dict(sgd(model, lr=7.0).state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.1
    plain = SAMOptimizer(sgd(model), SAM(model))
    plain.load_state_dict(sgd(model, lr=7.0).state_dict())  # SAM itself has none
    assert plain.param_groups[0]["lr"] == 7.0


def test_step_without_a_closure_says_what_to_do():
    model, (x, y) = mlp(), batch()
    optimizer = SAMOptimizer(sgd(model), SAM(model))
    closure_of(model, x, y)()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"step\(\): SAM runs the closure twice; .*sam.perturbed\(\)"):
        optimizer.step()
    assert_untouched(model, before)


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
    if not in_place:
        optimizer.step(accumulate)  # cleared before the step does as well: there is nothing to mix
    else:
        with pytest.raises(RuntimeError, match="the closure did not clear the gradients"):
            optimizer.step(accumulate)

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


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_adapters_too(method, duplicate):
    model, (x, y) = mlp(), batch()
    optimizer = SAMOptimizer(sgd(model), method(model))
    optimizer.step(zeroing(optimizer, model, x, y))
    other, twin = duplicate((model, optimizer))
    assert twin.sam.model is other and twin.param_groups[0]["params"][0] is other[0].weight
    for _ in range(4):
        optimizer.step(zeroing(optimizer, model, x, y))
        twin.step(zeroing(twin, other, x, y))
    assert same_weights(model, other)


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
