"""ESAM: which tensors it draws, which samples it keeps, and the gradient there."""

import pytest
import torch
import torch.nn.functional as F
from baselines.flat import Flat, gradient, weights
from baselines.selecting import Losses, away, bowl, gradients, largest, parabolas, spread
from helpers import assert_same_state, same_bits
from hypothesis import given
from hypothesis import strategies as st
from networks import batch, mlp
from torch import nn

from ausam_ext.baselines import ESAM


def drawn(sam):
    return sam.state_dict()["drawn"].tolist()


def draw(sam, which):
    """Makes ``which`` the tensors that the next step perturbs."""
    sam.load_state_dict({**sam.state_dict(), "drawn": torch.tensor(which)})


def test_samples_kept_as_worked_by_hand(backend):
    """l = (.5, 2, 4.5, 8), g = -.5, e = -.5, there l = (1.125, 3.125, 6.125, 6.125): the losses of t = 3 and
    t = 2 rise most, by 1.625 and 1.125, and at w = -.5 their mean gradient is -.5 - 2.5 = -3."""
    model, losses = parabolas()
    sam = ESAM(model, 0.5, beta=1.0, gamma=0.5)
    loss, loss_perturbed = sam.backward(losses)
    assert loss.tolist() == [0.5, 2.0, 4.5, 8.0]
    assert sam.positions.tolist() == [1, 2] and sam.positions.dtype == torch.int64
    assert losses.passes[2][0].tolist() == [1, 2]
    torch.testing.assert_close(loss_perturbed, torch.tensor([3.125, 6.125], dtype=torch.float64))
    torch.testing.assert_close(model.w[0].grad, torch.tensor([-3.0], dtype=torch.float64))
    assert weights(model).tolist() == [0.0]


def test_the_change_counts_with_its_sign():
    """|S| = (.625, 1.125, 1.625, 1.875) would keep t = -4, whose loss falls."""
    model, losses = parabolas()
    sam = ESAM(model, 0.5, beta=1.0, gamma=0.75)
    sam.backward(losses)
    assert sam.positions.tolist() == [0, 1, 2]


def test_what_is_to_be_raised_is_worst_where_it_falls():
    """The same problem with its sign turned: the same samples, the opposite gradient."""
    model, losses = parabolas(sign=-1.0)
    sam = ESAM(model, 0.5, beta=1.0, gamma=0.5, maximize=True)
    sam.backward(losses)
    assert sam.positions.tolist() == [1, 2]
    torch.testing.assert_close(model.w[0].grad, torch.tensor([3.0], dtype=torch.float64))


def test_tensors_drawn_as_worked_by_hand(backend):
    """w = (3, 1), g = (3, 4). Of w2 alone g = (0, 4), so e = .5 (0, 4) / 4 / .5 = (0, 1), and at (3, 2) the
    gradient is (3, 8). Of both, as in the first step, e = .5 (3, 4) / 5 / .5 = (.6, .8): (3.6, 7.2)."""
    model, losses = bowl()
    sam = ESAM(model, 0.5, beta=0.5, gamma=1.0)
    assert drawn(sam) == [True, True]
    for which, there, expected in (
        ([True, True], [3.6, 1.8], [3.6, 7.2]),
        ([False, True], [3.0, 2.0], [3.0, 8.0]),
    ):
        draw(sam, which)
        sam.backward(losses)
        assert torch.cat(losses.passes[-1][1]).tolist() == pytest.approx(there, abs=1e-11)
        assert gradient(model).tolist() == pytest.approx(expected, abs=1e-11)
        assert weights(model).tolist() == [3.0, 1.0]


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


def test_each_tensor_is_drawn_with_its_probability():
    """And by a generator of its own: neither torch's is read, nor does anything but the seed matter."""
    layers = 50
    before, counts, sequences = torch.get_rng_state(), torch.zeros(2 * layers), []
    for seed in (3, 3, 4):
        torch.manual_seed(len(sequences))
        sam = ESAM(nn.Sequential(*(nn.Linear(1, 1) for _ in range(layers))), beta=0.3, seed=seed)
        draws = []
        for _ in range(40):
            sam.backward(lambda positions, sam=sam: sam.model(torch.ones(2, 1)).flatten())
            draws.append(drawn(sam))
        sequences.append(draws)
        counts += torch.tensor(draws).sum(0)
    assert sequences[0] == sequences[1] != sequences[2]
    torch.set_rng_state(before)
    # 120 draws of each tensor, 80 of them twice the same; five standard deviations, and of all 12,000.
    assert ((counts / 120 - 0.3).abs() < 5 * (0.3 * 0.7 / 60) ** 0.5).all()
    assert abs(counts.mean() / 120 - 0.3) < 5 * (0.3 * 0.7 / 6000) ** 0.5


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


def test_losses_of_16_bits_are_compared_exactly():
    """The first rises by 5 - 1.0078125 = 3.9921875, which bfloat16 would round to the 4 of the next two."""
    model = nn.Linear(1, 1, bias=False)
    at = torch.tensor([[1.0078125, 512.0, 8.0, 1.0], [5.0, 516.0, 12.0, 1.0]], dtype=torch.bfloat16)
    calls = []

    def losses(positions):
        calls.append(positions)
        loss = at[int(len(calls) > 1)] + 0 * model.weight.sum().to(torch.bfloat16)
        return loss if positions is None else loss[positions]

    sam = ESAM(model)
    sam.backward(losses)
    assert sam.positions.tolist() == [1, 2]


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
