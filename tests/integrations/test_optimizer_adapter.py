"""SAMOptimizer: to schedulers, hooks, checkpoints and loops it is the optimizer that it wraps."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import same_bits
from integrations.loops import METHODS, same_weights, sgd, zeroing
from networks import assert_untouched, batch, closure_of, mlp, snapshot
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook

from ausam_ext import ADLP, SAM, VSAM
from ausam_ext.integrations import SAMOptimizer


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


@pytest.mark.parametrize("name", ["first_step", "second_step"])
def test_called_as_elsewhere(name):
    model = mlp()
    optimizer = SAMOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), SAM(model))
    with pytest.raises(AttributeError, match=rf"SAMOptimizer has no {name}: step\(closure\)"):
        getattr(optimizer, name)
