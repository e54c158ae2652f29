"""Mistakes that would train something else without a word: each is an error that says what to do."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import assert_untouched, batch, closure_of, mlp, snapshot
from torch import nn
from torch.optim.swa_utils import AveragedModel

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


def two_passes(sam, model, x, y):
    closure_of(model, x, y)()
    with sam.perturbed():
        closure_of(model, x, y)()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.__setitem__(4, nn.Linear(16, 3)),
        lambda m: m[0].load_state_dict(m[0].state_dict(), assign=True),
        lambda m: nn.utils.parametrizations.weight_norm(m[2]),
        lambda m: m.append(nn.Linear(3, 3)),
        lambda m: m.insert(1, nn.BatchNorm1d(16)),
    ],
    ids=["replaced", "assigned", "parametrized", "added", "normalisation"],
)
def test_a_model_that_has_other_parameters_than_before(sam_of, change):
    """What is new would not be perturbed, and have the gradients of both passes."""
    model, (x, y) = mlp(), batch()
    sam = sam_of(model)
    two_passes(sam, model, x, y)
    change(model)
    before = snapshot(model)
    closure_of(model, x, y)()
    for enter in (sam.perturbed().__enter__, *([sam.reuse_] if isinstance(sam, VSAM) else [])):
        with pytest.raises(RuntimeError, match=r"other parameters .*make a new one"):
            enter()
    assert_untouched(model, before)
    two_passes(sam_of(model), model, x, y)


def test_models_that_are_made_or_wrapped_meanwhile_disturb_nobody(sam_of):
    model, (x, y) = mlp(), batch()
    sam = sam_of(model)
    for other in (lambda: mlp(), lambda: nn.Sequential(model), lambda: AveragedModel(model)):
        two_passes(sam, model, x, y)
        kept = other()
    two_passes(sam, model, x, y)
    assert kept is not None


def test_a_copy_refuses_for_its_own_model(sam_of):
    model, (x, y) = mlp(), batch()
    model, sam = copy.deepcopy((model, sam_of(model)))
    assert sam.model is model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    closure_of(model, x, y)()
    with pytest.raises(RuntimeError, match=r"optimizer.step\(\) inside perturbed\(\)"), sam.perturbed():
        optimizer.step()


def test_a_gradient_that_is_unscaled_between_the_passes(sam_of):
    """The scaler unscales once: the second gradient would stay scaled, and the step be thousands of times as
    long."""
    model, (x, y) = mlp(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    sam = sam_of(model)
    scaled = type(sam)(model, scaler=scaler, **({"warmup_steps": 5} if isinstance(sam, VSAM) else {}))
    before = snapshot(model)
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.unscale_(optimizer)
    for name in ("perturbed", *(["reuse_"] if isinstance(sam, VSAM) else [])):
        with pytest.raises(RuntimeError, match=rf"{name}\(\): expected scaled .*call it, and clip, after"):
            getattr(scaled, name)().__enter__()
    assert_untouched(model, before)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    with scaled.perturbed():  # the next step may go on
        scaler.scale(F.cross_entropy(model(x), y)).backward()


def test_lbfgs_is_refused_where_its_closure_calls_sam(sam_of):
    model, (x, y) = mlp(), batch()
    sam, optimizer = sam_of(model), torch.optim.LBFGS(model.parameters(), max_iter=2)
    before = snapshot(model)
    for call in (
        lambda: optimizer.step(lambda: sam.backward(closure_of(model, x, y))[0].mean()),
        lambda: optimizer.step(closure=lambda: sam.backward(closure_of(model, x, y))[0].mean()),
    ):
        with pytest.raises(TypeError, match="any but LBFGS: LBFGS calls its closure many times"):
            call()
    assert_untouched(model, before)
    two_passes(sam, model, x, y)  # and nothing of it stays
    first = optimizer.step(lambda: closure_of(model, x, y)().mean())
    assert optimizer.step(lambda: closure_of(model, x, y)().mean()) < first  # without SAM it works


def test_per_process_needs_the_wrapper():
    model, (x, y) = mlp(), batch()
    with pytest.raises(TypeError, match=r"per_process: .*DistributedDataParallel.*Sequential"):
        SAM(model).backward(closure_of(model, x, y), per_process=True)
    assert all(p.grad is None for p in model.parameters())


def test_within_cached_parametrisations(sam_of):
    """The second pass would see the weights that the first one computed."""
    model, (x, y) = mlp(), batch()
    nn.utils.parametrizations.weight_norm(model[2])
    before, sam = snapshot(model), sam_of(model)
    with nn.utils.parametrize.cached():
        closure_of(model, x, y)()
        with pytest.raises(RuntimeError, match=r"inside parametrize\.cached\(\)"):
            sam.perturbed().__enter__()
    assert_untouched(model, before)
    with nn.utils.parametrize.cached():
        closure_of(model, x, y)()
    with sam.perturbed(), nn.utils.parametrize.cached():
        closure_of(model, x, y)()


@pytest.mark.parametrize("stepped", [False, True])
def test_one_scaler_of_two_networks(sam_of, stepped):
    """What was unscaled is the other network's; an optimizer is known by its first step, or not yet."""
    nets, (x, y) = [mlp(seed=i) for i in range(2)], batch()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in nets]
    kwargs = {"warmup_steps": 5} if isinstance(sam_of(nets[0]), VSAM) else {}
    sams = [type(sam_of(m))(m, 0.5, scaler=scaler, **kwargs) for m in nets]

    def passes(i):
        nets[i].zero_grad()
        scaler.scale(F.cross_entropy(nets[i](x), y)).backward()
        with sams[i].perturbed():
            scaler.scale(F.cross_entropy(nets[i](x), y)).backward()

    for _ in range(2 if stepped else 1):
        passes(0)
        scaler.unscale_(optimizers[0])
        passes(1)
        closure = [p.grad.clone() / scaler.get_scale() for p in nets[1].parameters()]
        with pytest.raises(RuntimeError, match=r"expected scaled gradients"):
            sams[0].perturbed().__enter__()
        for optimizer in optimizers:
            scaler.step(optimizer)
        for p, g in zip(nets[1].parameters(), closure, strict=True):
            torch.testing.assert_close(p.grad, g)
        scaler.update()


class DeepSpeedEngine(nn.Module):
    """What DeepSpeed's engine looks like from outside."""

    def __init__(self, module, stage):
        super().__init__()
        self.module, self.stage = module, stage

    def zero_optimization_stage(self):
        return self.stage


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_deepspeed_engine_with_zero(stage):
    with pytest.raises(TypeError, match=rf"a DeepSpeedEngine without ZeRO, got one of stage {stage}"):
        SAM(DeepSpeedEngine(mlp(), stage))
    SAM(DeepSpeedEngine(mlp(), 0))
