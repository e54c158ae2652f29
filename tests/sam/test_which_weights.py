"""Which weights are perturbed, and whose gradient they get: several modules, parts of one, frozen ones."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import batch, closure_of, mlp
from torch import nn

from ausam_ext import SAM, VSAM

MAKE = {"SAM": SAM, "VSAM": lambda *a, **kw: VSAM(*a, warmup_steps=1, gamma=1.0, **kw)}


class Proxies(nn.Module):
    """A loss with weights, one vector a class."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def forward(self, e, y):
        return F.cross_entropy(F.normalize(e) @ F.normalize(self.weight).t() * 8, y)


def sam_by_hand(loss, params, perturbed, rho):
    """Gradients of both passes by autograd.grad, the second where `perturbed` are moved; float64."""
    values = {k: p.detach().clone().requires_grad_() for k, p in params.items()}
    g = dict(zip(values, torch.autograd.grad(loss(values), list(values.values())), strict=True))
    norm = torch.cat([g[k].flatten() for k in perturbed]).norm()
    moved = {
        k: (v + rho * g[k] / (norm + 1e-12) if k in perturbed else v).detach().requires_grad_()
        for k, v in values.items()
    }
    return g, dict(zip(moved, torch.autograd.grad(loss(moved), list(moved.values())), strict=True))


@pytest.fixture
def pair():
    """A model and a criterion, and their joint loss as a function of named values."""
    model, criterion = mlp(torch.float64), Proxies()
    x, y = batch(dtype=torch.float64)
    both = nn.ModuleDict({"model": model, "criterion": criterion})

    def loss(values):
        e = torch.func.functional_call(
            model, {k.removeprefix("model."): v for k, v in values.items() if k.startswith("model.")}, (x,)
        )
        return torch.func.functional_call(criterion, {"weight": values["criterion.weight"]}, (e, y))

    return model, criterion, dict(both.named_parameters()), loss, lambda: criterion(model(x), y)


@pytest.mark.parametrize("method", MAKE)
@pytest.mark.parametrize("which", ["all", "model", "criterion", "two layers"])
def test_all_get_the_second_gradient_and_some_are_perturbed(backend, pair, method, which):
    model, criterion, params, loss, run = pair
    chosen = {
        "all": list(params),
        "model": [k for k in params if k.startswith("model.")],
        "criterion": ["criterion.weight"],
        "two layers": [k for k in params if ".0." in k or ".4." in k],
    }[which]
    g, second = sam_by_hand(loss, params, chosen, 0.3)
    given = None if which == "all" else (params[k] for k in chosen)
    sam = MAKE[method]([model, criterion], rho=0.3, params=given)
    for step in range(3):
        for p in params.values():
            p.grad = None
        run().backward()
        if method == "SAM" or sam.decide():
            with sam.perturbed():
                run().backward()
            expected = second
        else:  # the same weights: g + (g_SAM - g), and the plain gradient of the others
            sam.reuse_()
            expected = {k: second[k] if k in chosen else g[k] for k in params}
            assert step > 0
        for k, p in params.items():
            torch.testing.assert_close(p.grad, expected[k], rtol=1e-10, atol=1e-12)


def test_the_closure_form_of_several_modules(pair):
    model, criterion, params, loss, run = pair
    _, second = sam_by_hand(loss, params, list(params), 0.3)
    sam = SAM((model, criterion), rho=0.3)

    def closure():
        sam.model.zero_grad()
        value = run()
        value.backward()
        return value

    sam.backward(closure)
    for k, p in params.items():
        torch.testing.assert_close(p.grad, second[k], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", MAKE)
def test_frozen_weights_with_an_old_gradient_take_no_part(backend, method):
    """As in alternating training, whose parts are cleared at the beginning of their own step."""
    model, (x, y) = mlp(torch.float64), batch(dtype=torch.float64)
    names = dict(model.named_parameters())
    sam = MAKE[method](model, rho=0.3)

    def loss(values):
        return F.cross_entropy(torch.func.functional_call(model, values, (x,)), y)

    for stage in (["0.weight", "0.bias"], ["2.weight", "2.bias"], list(names), ["4.bias"]):
        for k, p in names.items():
            p.requires_grad_(k in stage)
            p.grad = torch.full_like(p, 7.0) if k not in stage else None  # old ones
        g, second = sam_by_hand(loss, names, stage, 0.3)
        before = {k: p.detach().clone() for k, p in names.items()}
        F.cross_entropy(model(x), y).backward()
        if method == "VSAM" and not sam.decide():
            sam.reuse_()
            for k in stage:
                had = k in ("0.weight", "0.bias")  # a PSF, of the first stage
                assert torch.equal(names[k].grad, g[k]) != had
        else:
            with sam.perturbed():
                moved = {k: (p.detach() - before[k]).norm().item() ** 2 for k, p in names.items()}
                F.cross_entropy(model(x), y).backward()
            assert all(moved[k] == 0 for k in names if k not in stage)
            assert sum(moved.values()) ** 0.5 == pytest.approx(0.3, rel=1e-9)
            for k in stage:
                torch.testing.assert_close(names[k].grad, second[k], rtol=1e-10, atol=1e-12)
        for k, p in names.items():
            if k not in stage:
                assert torch.equal(p.grad, torch.full_like(p, 7.0))


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "params: expected at least one"),
        (["0.weight"], TypeError, r"params: .*'0\.weight'"),
        ("0.weight", TypeError, r"params: .*'0\.weight'"),
        (3, TypeError, "params: .*3"),
        ([nn.Parameter(torch.zeros(2, 5))], ValueError, r"params: .*\(2, 5\)"),
    ],
)
def test_parameters_that_are_not_of_the_model(params, error, message):
    with pytest.raises(error, match=message):
        SAM(mlp(), params=params)


def test_parameters_that_come_twice_are_refused():
    model = mlp()
    with pytest.raises(ValueError, match=r"params: .*each at most once"):
        SAM(model, params=[model[0].weight, model[0].weight])


def test_groups_are_of_what_is_perturbed():
    model = mlp()
    with pytest.raises(ValueError, match=r"groups: .*parameters of the model"):
        SAM(model, params=model[0].parameters(), groups=[{"params": model[2].parameters(), "rho": 0.1}])


def test_without_a_gradient_of_what_is_perturbed(pair):
    model, criterion, _, _, run = pair
    sam = SAM([model, criterion], params=[criterion.weight])
    criterion.weight.requires_grad_(False)
    run().backward()
    with pytest.raises(RuntimeError, match="no parameter has a gradient"), sam.perturbed():
        pass


@pytest.mark.parametrize("named", [False, True])
def test_an_optimizer_that_trains_what_no_sam_was_given(pair, named):
    """The gradient of those weights is the sum of both passes."""
    model, _, params, _, run = pair
    optimizer = torch.optim.SGD(list(params.items()) if named else list(params.values()), lr=0.1)
    sam = SAM(model)
    name = "criterion.weight" if named else r"param_groups\[0\]\[\"params\"\]\[6\] of shape \(3, 3\)"
    run().backward()
    with sam.perturbed():
        run().backward()
    with pytest.warns(UserWarning, match=rf"no SAM was given: {name}\. .*SAM\(\[model, criterion\]\)"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # once is enough
            optimizer.zero_grad()
            run().backward()
            with sam.perturbed():
                run().backward()
            optimizer.step()


def test_no_warning_where_all_weights_have_a_sam(pair):
    """Two SAMs and one optimizer; an optimizer of another loop; weights that no backward pass reached."""
    model, criterion, params, _, run = pair
    sams = [SAM(model), SAM(criterion)]
    apart = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([*params.values(), apart], lr=0.1)
    other = torch.optim.SGD(mlp(seed=1).parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run().backward()
        with sams[0].perturbed(), sams[1].perturbed():
            run().backward()
        other.step()
        optimizer.step()


MAXIMIZE = {
    "SAM": lambda m, **kw: SAM(m, 0.5, **kw),
    "adaptive": lambda m, **kw: SAM(m, 0.5, adaptive=True, **kw),
    "groups": lambda m, **kw: SAM(m, 0.1, groups=[{"params": m[0].parameters(), "rho": 0.5}], **kw),
    "VSAM": lambda m, **kw: VSAM(m, 0.5, warmup_steps=2, gamma=0.7, **kw),
}


@pytest.mark.parametrize("method", MAXIMIZE)
def test_raising_an_objective_is_lowering_its_opposite(backend, method):
    lowered, raised, (x, y) = mlp(torch.float64), mlp(torch.float64), batch(dtype=torch.float64)
    optimizers = [
        torch.optim.SGD(lowered.parameters(), lr=0.1, momentum=0.9),
        torch.optim.SGD(raised.parameters(), lr=0.1, momentum=0.9, maximize=True),
    ]
    sams = [MAXIMIZE[method](lowered), MAXIMIZE[method](raised, maximize=True)]
    for _ in range(5):
        for model, optimizer, sam, sign in zip((lowered, raised), optimizers, sams, (1, -1), strict=True):

            def closure(model=model, sign=sign):
                model.zero_grad()
                loss = sign * F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            sam.backward(closure)
            optimizer.step()
    for a, b in zip(lowered.parameters(), raised.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_of_the_other_direction_is_refused(flag, optimizer):
    model, (x, y) = mlp(), batch()
    sam, opposite = SAM(model, maximize=flag), optimizer(model.parameters(), maximize=not flag)
    before = [p.detach().clone() for p in model.parameters()]
    closure_of(model, x, y)()
    with sam.perturbed():
        closure_of(model, x, y)()
    with pytest.raises(RuntimeError, match=rf"maximize={flag} in param_groups\[0\], .*got {not flag}"):
        opposite.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    sam.maximize = not flag
    opposite.step()


def test_a_group_that_is_not_perturbed_may_have_the_other_direction(pair):
    """As the multipliers of a Lagrangian have."""
    model, criterion, _, _, run = pair
    groups = [{"params": model.parameters()}, {"params": criterion.parameters(), "maximize": True}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    sam = SAM([model, criterion], params=model.parameters())
    run().backward()
    with sam.perturbed():
        run().backward()
    optimizer.step()
