"""ESAM: the gradient on what it has drawn and kept, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from baselines.drawn import draw, drawn
from baselines.flat import Flat, gradient, weights
from baselines.selecting import Losses, away, gradients, largest, spread
from helpers import assert_same_state, same_bits
from hypothesis import given
from hypothesis import strategies as st
from networks import batch, mlp
from torch import nn

from ausam_ext.baselines import ESAM


@given(
    size=st.integers(1, 20),
    beta=st.floats(0.1, 1),
    gamma=st.floats(0.01, 1),
    adaptive=st.booleans(),
    maximize=st.booleans(),
    frozen=st.booleans(),
    grouped=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_gradient_equals_an_independent_one(size, beta, gamma, adaptive, maximize, frozen, grouped, seed):
    """Over four steps of random networks in float64, for what each of them has drawn."""
    model, sign = mlp(torch.float64, seed), -1.0 if maximize else 1.0
    params = list(model.parameters())
    params[2].requires_grad_(not frozen)
    groups, radii = (
        ([{"params": params[4:], "rho": 0.1}], [0.3] * 4 + [0.1] * 2) if grouped else ([], [0.3] * 6)
    )
    sam = ESAM(
        model, 0.3, beta=beta, gamma=gamma, seed=seed, adaptive=adaptive, maximize=maximize, groups=groups
    )
    optimizer = torch.optim.SGD(params, lr=0.3, momentum=0.9, maximize=maximize)
    for step in range(4):
        x, y = batch(size, torch.float64, seed + step)
        flat, trained, taken = Flat(model), spread(model, [p.requires_grad for p in params]), drawn(sam)
        assert step > 0 or all(taken)
        first = trained * spread(model, taken) * flat.gradient(flat.w, x, y)
        at = away(flat.w, first, sign / beta * spread(model, radii), adaptive)
        before, after = flat.losses(flat.w, x, y), flat.losses(at, x, y)
        kept = largest((sign * (after - before)).tolist(), gamma)

        losses = Losses(model, x, y)
        results = sam.backward(losses)
        assert sam.positions.tolist() == kept
        assert all((p.grad is not None) == p.requires_grad for p in params)
        got = torch.cat(
            [
                g.flatten() if g is not None else 0 * p.flatten()
                for p, g in zip(params, gradients(model), strict=True)
            ]
        )
        expected = trained * flat.gradient(at, x[kept], y[kept])
        there = [torch.cat([p.flatten() for p in tensors]) for _, tensors, _ in losses.passes[1:]]
        for a, b in zip((*results, got, *there), (before, after[kept], expected, at, at), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert torch.equal(weights(model), flat.w)
        optimizer.step()


def test_nothing_is_computed_for_what_is_not_drawn(backend):
    """That saves the time. A hook on each parameter hears of its gradients."""
    model, (x, y) = mlp(), batch()
    heard = []
    for i, p in enumerate(model.parameters()):
        p.register_hook(lambda _, i=i: heard.append(i))
    sam = ESAM(model)
    for which in ([True] * 6, [False, True, False, False, True, False], [False] * 6):
        draw(sam, which)
        heard.clear()
        sam.backward(Losses(model, x, y))
        assert sorted(heard) == sorted([*range(6), *(i for i in range(6) if which[i])])
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("views", [False, True], ids=["own gradients", "gradients in one memory"])
def test_if_none_is_drawn_the_weights_stay(backend, views):
    """No loss rises, so the first samples are kept."""
    model, (x, y) = mlp(torch.float64), batch(dtype=torch.float64)
    params = list(model.parameters())
    if views:
        memory = torch.ones(sum(p.numel() for p in params), dtype=torch.float64)
        for p, part in zip(params, memory.split([p.numel() for p in params]), strict=True):
            p.grad = part.view_as(p)
    sam, flat = ESAM(model, 0.5, gamma=0.4), Flat(model)
    pointers = [p.data_ptr() for p in gradients(model)] if views else []
    for _ in range(2):
        draw(sam, [False] * 6)
        losses = Losses(model, x, y)
        loss, loss_perturbed = sam.backward(losses)
        assert all(torch.equal(torch.cat([p.flatten() for p in at]), flat.w) for _, at, _ in losses.passes)
        assert sam.positions.tolist() == list(range(8)) and torch.equal(loss[:8], loss_perturbed)
        torch.testing.assert_close(
            gradient(model), flat.gradient(flat.w, x[:8], y[:8]), rtol=1e-12, atol=1e-12
        )
    assert not views or [p.data_ptr() for p in gradients(model)] == pointers


class TwoHeads(nn.Module):
    def __init__(self, used):
        super().__init__()
        self.a, self.b, self.used = nn.Linear(6, 3), nn.Linear(6, 3), used

    def forward(self, x):
        return getattr(self, self.used)(x)


@pytest.mark.parametrize("used", ["a", "b"])
def test_drawn_tensors_that_the_loss_does_not_use(used):
    model, (x, y) = TwoHeads(used), batch()
    sam = ESAM(model)
    draw(sam, [used != "a"] * 2 + [used != "b"] * 2)
    sam.backward(Losses(model, x, y))
    assert [p.grad is not None for p in model.parameters()] == [used == "a"] * 2 + [used == "b"] * 2
    draw(sam, [True] * 4)
    sam.backward(Losses(model, x, y))


def test_frozen_weights_stay_frozen():
    model, (x, y) = mlp(), batch()
    model[2].requires_grad_(False)
    before, sam = [p.clone() for p in model[2].parameters()], ESAM(model, 0.5)
    for which in ([True] * 6, [False, False, True, True, False, False], [True, False, True, False] * 2):
        draw(sam, which[:6])
        losses = Losses(model, x, y)
        sam.backward(losses)
        assert [p.requires_grad for p in model.parameters()] == [True, True, False, False, True, True]
        for _, at, _ in losses.passes:
            assert all(map(torch.equal, at[2:4], before))
        assert all(p.grad is None for p in model[2].parameters())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("perturbed_only", [True, False])
def test_an_overflow_shows_in_the_gradient(value, perturbed_only):
    """The sample whose loss is not finite is kept, so that a scaler, or whoever looks, finds it."""
    model, (x, y) = mlp(), batch()
    passes = []

    def losses(positions):
        x_, y_ = (x, y) if positions is None else (x[positions], y[positions])
        passes.append(positions)
        loss = F.cross_entropy(model(x_), y_, reduction="none")
        bad = torch.arange(20) == 7 if positions is None else positions == 7
        return torch.where(bad, loss * value, loss) if len(passes) > perturbed_only else loss

    before = [p.detach().clone() for p in model.parameters()]
    sam = ESAM(model, beta=1.0, gamma=0.2)
    sam.backward(losses)
    assert 7 in sam.positions.tolist() and len(sam.positions) == 4
    assert not all(g.isfinite().all() for g in gradients(model))
    assert all(map(same_bits, model.parameters(), before))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_network_is_not_compiled_for_each_draw():
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    torch._dynamo.reset()
    model, (x, y) = mlp(), batch()
    forward = torch.compile(model, backend=backend)
    sam = ESAM(forward, seed=1)
    draws = []
    for step in range(12):
        draws.append(tuple(drawn(sam)))
        sam.backward(Losses(forward, x, y))
        if step == 1:
            then = len(compiled)
    assert len(set(draws)) > 8 and len(compiled) == then
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("state", "error", "match"),
    [
        ({"method": "SAM"}, ValueError, "method: expected a state of ESAM, got one of SAM"),
        ({"version": 99}, ValueError, "version: expected 1, got 99"),
        ({"drawn": torch.ones(5, dtype=torch.bool)}, ValueError, "drawn: expected 6 parameters, got 5"),
        ({"generator": torch.zeros(3, dtype=torch.uint8)}, RuntimeError, "RNG state"),
        ({"generator": None}, AttributeError, "NoneType"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(state, error, match):
    sam = ESAM(mlp(), seed=5)
    sam.backward(Losses(sam.model, *batch()))
    before = sam.state_dict()
    with pytest.raises(error, match=match):
        sam.load_state_dict({**before, **state})
    assert_same_state(sam.state_dict(), before)


@pytest.mark.parametrize("name", ["beta", "gamma"])
@pytest.mark.parametrize("bad", [0, -0.5, 1.5, float("nan")])
def test_bad_shares(name, bad):
    with pytest.raises(ValueError, match=f"{name}: expected a number above 0 and at most 1, got"):
        ESAM(mlp(), **{name: bad})


def test_bad_seed():
    with pytest.raises(TypeError, match=r"seed: expected an integer, at least 0, got 0\.5"):
        ESAM(mlp(), seed=0.5)


def test_repr():
    shown = repr(ESAM(mlp(), beta=0.6))
    assert shown.startswith("ESAM(Sequential, rho=0.05, ") and "beta=0.6, gamma=0.5" in shown
