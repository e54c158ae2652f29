"""K-SAM: which samples it takes, and that it is SAM on them."""

import pytest
import torch
from baselines.flat import Flat, gradient, weights
from baselines.selecting import Losses, away, largest, parabolas, spread
from hypothesis import given
from hypothesis import strategies as st
from networks import batch, mlp

from ausam_ext.baselines import KSAM


def test_values_worked_by_hand(backend):
    """l = (.5, 2, 4.5, 8): t = 3 and t = -4, of mean -.5; so g = .5, e = .5, and there w - mean t = 1."""
    model, losses = parabolas()
    sam = KSAM(model, 0.5, k_ratio=0.5)
    loss, loss_perturbed = sam.backward(losses)
    assert loss.tolist() == [0.5, 2.0, 4.5, 8.0]
    assert sam.positions.tolist() == [2, 3] and sam.positions.dtype == torch.int64
    (_, _, chosen), perturbed = losses.passes, losses.passes[2][1]
    assert chosen[0].tolist() == [2, 3]
    torch.testing.assert_close(perturbed[0], torch.tensor([0.5], dtype=torch.float64))
    # (.5 - 3)^2 / 2 and (.5 + 4)^2 / 2
    torch.testing.assert_close(loss_perturbed, torch.tensor([3.125, 10.125], dtype=torch.float64))
    torch.testing.assert_close(model.w[0].grad, torch.tensor([1.0], dtype=torch.float64))
    assert weights(model).tolist() == [0.0]


def test_what_is_to_be_raised_is_worst_where_it_is_smallest():
    """The same problem with its sign turned."""
    model, losses = parabolas(sign=-1.0)
    sam = KSAM(model, 0.5, k_ratio=0.5, maximize=True)
    sam.backward(losses)
    assert sam.positions.tolist() == [2, 3]
    torch.testing.assert_close(model.w[0].grad, torch.tensor([-1.0], dtype=torch.float64))


def test_of_equal_losses_the_first_are_taken():
    model = mlp()
    x, y = batch(1)
    sam = KSAM(model, k_ratio=0.3)
    sam.backward(Losses(model, x.expand(40, -1), y.expand(40)))
    assert sam.positions.tolist() == list(range(12))


@given(
    st.integers(1, 20), st.floats(0.01, 1), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 10**6)
)
def test_gradient_equals_an_independent_one(size, k_ratio, adaptive, maximize, part, seed):
    """Over three steps of random networks in float64."""
    model, sign = mlp(torch.float64, seed), -1.0 if maximize else 1.0
    options = {"params": list(model.parameters())[:3]} if part else {}
    sam = KSAM(model, 0.3, k_ratio=k_ratio, adaptive=adaptive, maximize=maximize, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, maximize=maximize)
    perturbed = spread(model, [i < 3 or not part for i in range(6)])
    for step in range(3):
        x, y = batch(size, torch.float64, seed + step)
        flat = Flat(model)
        before = flat.losses(flat.w, x, y)
        chosen = largest((sign * before).tolist(), k_ratio)
        at = away(flat.w, perturbed * flat.gradient(flat.w, x[chosen], y[chosen]), sign * 0.3, adaptive)

        loss, loss_perturbed = sam.backward(Losses(model, x, y))
        assert sam.positions.tolist() == chosen
        torch.testing.assert_close(loss, before, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(loss_perturbed, flat.losses(at, x, y)[chosen], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            gradient(model), flat.gradient(at, x[chosen], y[chosen]), rtol=1e-12, atol=1e-12
        )
        assert torch.equal(weights(model), flat.w)
        optimizer.step()


@pytest.mark.parametrize("bad", [0, -0.5, 1.5, float("nan")])
def test_bad_share(bad):
    with pytest.raises(ValueError, match=r"k_ratio: expected a number above 0 and at most 1, got"):
        KSAM(mlp(), k_ratio=bad)


def test_repr():
    shown = repr(KSAM(mlp(), k_ratio=0.25))
    assert shown.startswith("KSAM(Sequential, rho=0.05, ") and "k_ratio=0.25" in shown
