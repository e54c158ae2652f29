"""LookSAM: what is orthogonal to the gradient is reused."""

import pytest
import torch
from baselines.flat import Flat, Linear, Quadratic, gradient, weights
from baselines.methods import equal, run
from networks import batch, closure_of, mlp

from ausam_ext import SAM
from ausam_ext.baselines import LookSAM, PeriodicSAM


def kept(method):
    return torch.cat([psf.flatten() for psf in method.state_dict()["psf"]]).double()


@pytest.mark.parametrize(("every", "alpha"), [(5, 0.7), (3, 0.1)])
def test_trains_as_written_down_in_float64(backend, every, alpha):
    model = mlp(torch.float64)
    flat, buffer = Flat(model), 0
    sampled = run(model, LookSAM(model, 0.3, every=every, alpha=alpha))
    assert sampled == [t % every == 0 for t in range(11)]
    for t, second in enumerate(sampled):
        x, y = batch(seed=t, dtype=torch.float64)
        g, g_s = flat.sam_gradients(x, y, 0.3)
        if second:
            g_v = g_s - (g_s @ g) / (g @ g) * g
        buffer = 0.9 * buffer + (g_s if second else g + alpha * g.norm() / g_v.norm() * g_v)
        flat.w = flat.w - 0.1 * buffer
    torch.testing.assert_close(weights(model), flat.w, rtol=1e-11, atol=1e-12)


def test_a_quadratic_by_hand():
    """cos = .99384615, g_v = (-.576, .432), of length .72; then at (2.67, .44) g = (2.67, 1.76), to which
    .7 ||g|| / .72 = 3.109... times g_v is added."""
    model = Quadratic()
    method, optimizer = LookSAM(model, 0.5, alpha=0.7), torch.optim.SGD(model.parameters(), 0.1)
    method.backward(model.closure)
    torch.testing.assert_close(kept(method), torch.tensor([-0.576, 0.432], dtype=torch.float64))
    optimizer.step()
    assert method.backward(model.closure)[1] is None
    direction = torch.tensor([0.87918164, 3.1031138], dtype=torch.float64)
    torch.testing.assert_close(model.w.grad, direction, rtol=1e-7, atol=0)
    optimizer.step()
    after = torch.tensor([2.5820818, 0.12968862], dtype=torch.float64)
    torch.testing.assert_close(model.w.detach(), after, rtol=1e-7, atol=0)


def test_every_iteration_is_sam_bit_for_bit(backend):
    a, b = mlp(), mlp()
    assert all(run(a, LookSAM(a, 0.3, every=1)))
    run(b, SAM(b, 0.3))
    assert equal(a, b)


def test_alpha_zero_is_periodic_sam_bit_for_bit(backend):
    a, b = mlp(), mlp()
    run(a, LookSAM(a, 0.3, alpha=0.0))
    run(b, PeriodicSAM(b, 0.3))
    assert equal(a, b)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_reused_is_orthogonal_and_as_long_as_it_should(backend, dtype, tolerance, seed):
    model = mlp(dtype, seed=seed)
    method = LookSAM(model, 0.3, alpha=0.7)
    closure = closure_of(model, *batch(dtype=dtype, seed=seed))
    closure()
    g = gradient(model)
    method.backward(closure)
    g_v = kept(method)
    assert g_v.norm() > 0 and abs(g_v @ g) < tolerance * g_v.norm() * g.norm()
    method.backward(closure)  # the same batch, at the same weights
    added = gradient(model) - g
    torch.testing.assert_close(added.norm(), 0.7 * g.norm(), rtol=1e-5, atol=0)
    torch.testing.assert_close(added / added.norm(), g_v / g_v.norm(), rtol=1e-4, atol=1e-5)


def test_without_curvature_nothing_is_reused():
    """Both gradients are equal, so that g_v is 0."""
    model = Linear()
    method = LookSAM(model)
    for step in range(4):
        method.backward(model.closure_of([3.0, 4.0]))
        assert model.w.grad.tolist() == [3.0, 4.0], step
    model.w.data.fill_(1.0)  # and a gradient of 0
    method = LookSAM(model, every=2)
    for _ in range(4):
        method.backward(model.closure_of([0.0, 0.0]))
        assert model.w.grad.tolist() == [0.0, 0.0]


def test_the_scale_of_the_losses_changes_nothing():
    """What is reused is as long as the gradient is, so that a scale that changes in between has no part."""
    a, b = mlp(torch.float64), mlp(torch.float64)
    x, y = batch(dtype=torch.float64)
    plain, scaled = LookSAM(a, 0.3), LookSAM(b, 0.3)
    for factor in (1024.0, 8.0, 2.0**20):
        plain.backward(closure_of(a, x, y))

        def closure(factor=factor):
            b.zero_grad()
            (torch.nn.functional.cross_entropy(b(x), y) * factor).backward()
            return torch.tensor(0.0)

        scaled.backward(closure)
        # But for the 1e-12 in the length of SAM's perturbation.
        torch.testing.assert_close(gradient(b) / factor, gradient(a), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "every: expected an integer"),
        ({"alpha": -0.1}, ValueError, "alpha: expected a number not below 0, got -0.1"),
        ({"alpha": None}, TypeError, "alpha: expected a number"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LookSAM(mlp(), **arguments)
