"""What loops do around SAM and VSAM: accumulation, clipping, schedules, parameter groups, any optimizer."""

import pytest
import torch
import torch.nn.functional as F
from helpers import same_bits
from networks import assert_untouched, batch, closure_of, mlp, snapshot
from sam.oracle import sam_gradient_float64
from torch import nn

from ausam_ext import ADLP, SAM, VSAM

METHODS = {
    "SAM": lambda m, **kw: SAM(m, 0.3, **kw),
    "VSAM": lambda m, **kw: VSAM(m, 0.3, warmup_steps=2, **kw),
}


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()]).double()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [(10, 10), (3, 16, 1), (20,)])
def test_micro_batches_give_the_gradient_of_the_large_batch(backend, method, sizes):
    """In both passes and between samples; per-sample losses are recorded piece by piece."""
    (x, y), n = batch(n=20), 20
    large, small = mlp(), mlp()
    a, b = METHODS[method](large), METHODS[method](small)
    tables = [ADLP(n), ADLP(n)]

    def accumulate():
        losses = []
        for xs, ys in zip(x.split(sizes), y.split(sizes), strict=True):
            losses.append(F.cross_entropy(small(xs), ys, reduction="none"))
            (losses[-1].sum() / n).backward()
        return torch.cat(losses)

    for _ in range(4):
        losses = a.backward(closure_of(large, x, y))
        if losses[1] is not None:
            tables[0].update(torch.arange(n), *losses)
        small.zero_grad()
        loss = accumulate()
        if method == "SAM" or b.decide():
            with b.perturbed():
                loss_perturbed = accumulate()
            for part in torch.arange(n).split(sizes):
                tables[1].update(part, loss[part], loss_perturbed[part])
        else:
            b.reuse_()
        assert (gradient(large) - gradient(small)).norm() <= 2e-6 * gradient(large).norm()
    torch.testing.assert_close(tables[1].mean(), tables[0].mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_clipping_bounds_the_final_gradient_alone(backend, method):
    """A clipped first gradient has the same direction, so that only the last clip has an effect."""
    clipped, free, (x, y) = mlp(), mlp(), batch()
    METHODS[method](clipped).backward(closure_of(clipped, x, y))
    METHODS[method](free).backward(closure_of(free, x, y))
    assert torch.equal(gradient(clipped), gradient(free))
    norm = nn.utils.clip_grad_norm_(clipped.parameters(), 0.01)
    torch.testing.assert_close(norm.double(), gradient(free).norm())
    torch.testing.assert_close(gradient(clipped), gradient(free) * 0.01 / gradient(free).norm())


def exotic(name, **options):
    return pytest.param(lambda p: getattr(torch.optim, name)(p, **options), id=f"{name} {options}")


@pytest.mark.parametrize(
    "make",
    [
        exotic("SGD", lr=0.1, momentum=0.9, fused=True),
        exotic("Adam", lr=0.01, fused=True),
        exotic("AdamW", lr=0.01, fused=True),
        exotic("Adagrad", lr=0.05, fused=True),
        exotic("AdamW", lr=torch.tensor(0.01), foreach=False),
        exotic("NAdam", lr=0.01, foreach=True),
        exotic("RAdam", lr=0.01),
        exotic("Adadelta", lr=1.0),
        exotic("Adamax", lr=0.01),
        exotic("ASGD", lr=0.05),
        exotic("Rprop", lr=0.01),
        exotic("RMSprop", lr=0.01),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_any_optimizer_steps_from_the_weights(method, make):
    """The step is the one that the optimizer takes for the same gradient without anything around it."""
    model, plain, (x, y) = mlp(), mlp(), batch()
    ours, theirs = make(model.parameters()), make(plain.parameters())
    sam = METHODS[method](model)
    for _ in range(4):
        sam.backward(closure_of(model, x, y))
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
        assert all(same_bits(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_learning_rate_schedules_and_parameter_groups_act_as_ever(method):
    model, (x, y) = mlp(), batch()
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 0.2},
            {"params": [*model[2].parameters(), *model[4].parameters()]},
        ],
        lr=0.1,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    sam, rates = METHODS[method](model), []
    for _ in range(4):
        before = [p.detach().clone() for p in model.parameters()]
        sam.backward(closure_of(model, x, y))
        optimizer.step()
        for i, (p, b) in enumerate(zip(model.parameters(), before, strict=True)):
            lr = optimizer.param_groups[i > 1]["lr"]
            torch.testing.assert_close(p, b - lr * p.grad)
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 4


def test_the_radius_may_follow_a_schedule(backend):
    model, (x, y) = mlp(torch.float64), batch(dtype=torch.float64)
    sam = SAM(model)
    for rho in (0.0, 0.4, 2.0):
        sam.rho = rho
        sam.backward(closure_of(model, x, y))
        torch.testing.assert_close(gradient(model), sam_gradient_float64(model, x, y, rho, False))


@pytest.mark.parametrize("adaptive", [False, True])
def test_groups_have_radii_of_their_own_and_one_norm(backend, adaptive):
    model, (x, y) = mlp(torch.float64), batch(dtype=torch.float64)
    groups = [
        {"params": model[0].parameters(), "rho": 0.5},
        {"params": [model[4].bias], "rho": 0.0},
        {"params": [model[4].weight], "rho": 0.5},
    ]
    sam, before = SAM(model, 0.1, adaptive=adaptive, groups=groups), snapshot(model)
    closure_of(model, x, y)()
    w = [p.detach().clone() for p in model.parameters()]
    g = [p.grad.clone() for p in model.parameters()]
    norm = torch.cat([(a * b if adaptive else b).flatten() for a, b in zip(w, g, strict=True)]).norm()
    for extra in (0.0, 1.0):  # the radii are read at every step
        sam.groups[1]["rho"] = extra
        radii = [0.5, 0.5, 0.1, 0.1, 0.5, extra]
        for p, grad in zip(model.parameters(), g, strict=True):
            p.grad = grad.clone()
        with sam.perturbed():
            moved = [p - b for p, b in zip(model.parameters(), w, strict=True)]
            closure_of(model, x, y)()
        for m, rho, a, b in zip(moved, radii, w, g, strict=True):
            torch.testing.assert_close(m, rho * (a * a * b if adaptive else b) / norm)
        assert_untouched(model, before)


def test_groups_are_checked():
    model = mlp()
    for groups in (
        [{"params": mlp().parameters(), "rho": 0.1}],
        [{"params": [model[0].weight], "rho": 0.1}, {"params": model[0].parameters(), "rho": 0.2}],
    ):
        with pytest.raises(ValueError, match="groups: expected parameters of the model, each at most once"):
            SAM(model, groups=groups)
    with pytest.raises(ValueError, match=r"rho: .*-1"):
        SAM(model, groups=[{"params": [model[0].weight], "rho": -1}])


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_a_radius_that_became_wrong_changes_nothing(backend, wrong):
    model, (x, y) = mlp(), batch()
    before = snapshot(model)
    grouped = SAM(model, groups=[{"params": [model[4].weight], "rho": 0.1}])
    grouped.groups[0]["rho"] = wrong
    plain = SAM(model)
    plain.rho = wrong
    for sam in (grouped, plain):
        closure_of(model, x, y)()
        with pytest.raises(ValueError, match=f"rho: .*{wrong}"), sam.perturbed():
            pass
        assert_untouched(model, before)
        assert all(p.grad is not None for p in model.parameters())


def test_a_sparse_gradient_in_a_group_is_refused_before_anything_changes(backend):
    model = nn.ModuleList([nn.Linear(3, 3), nn.Embedding(5, 3, sparse=True)])
    before = snapshot(model)
    sam = SAM(model, groups=[{"params": model[0].parameters(), "rho": 0.1}])
    model[0](model[1](torch.tensor([1, 2]))).sum().backward()
    with pytest.raises(TypeError, match=r"grads\[2\].*sparse"), sam.perturbed():
        pass
    assert_untouched(model, before)
