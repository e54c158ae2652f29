"""PeriodicSAM: SAM every k-th iteration."""

import pytest
import torch
from baselines.flat import Flat, weights
from baselines.methods import equal, run
from networks import batch, closure_of, mlp

from ausam_ext import SAM
from ausam_ext.baselines import PeriodicSAM


@pytest.mark.parametrize("every", [2, 5])
def test_trains_as_written_down_in_float64(backend, every):
    model = mlp(torch.float64)
    flat, buffer = Flat(model), 0
    sampled = run(model, PeriodicSAM(model, 0.3, every=every))
    assert sampled == [t % every == 0 for t in range(11)]
    for t in range(11):
        x, y = batch(seed=t, dtype=torch.float64)
        g, g_s = flat.sam_gradients(x, y, 0.3)
        buffer = 0.9 * buffer + (g_s if t % every == 0 else g)
        flat.w = flat.w - 0.1 * buffer
    torch.testing.assert_close(weights(model), flat.w, rtol=1e-12, atol=1e-13)


def test_every_iteration_is_sam_bit_for_bit(backend):
    a, b = mlp(), mlp()
    assert all(run(a, PeriodicSAM(a, 0.3, every=1)))
    run(b, SAM(b, 0.3))
    assert equal(a, b)


def test_between_the_samples_it_is_plain_bit_for_bit(backend):
    a, b = mlp(), mlp()
    method = PeriodicSAM(a, 0.3, every=100)
    method._iteration = 1  # the first was one of SAM
    assert not any(run(a, method))
    run(b, None)
    assert equal(a, b)


def test_explicit_form_and_closure_agree():
    a, b = mlp(), mlp()
    run(a, PeriodicSAM(a, 0.3, every=3))
    method, optimizer = PeriodicSAM(b, 0.3, every=3), torch.optim.SGD(b.parameters(), 0.1, momentum=0.9)
    for step in range(11):
        closure = closure_of(b, *batch(seed=step))
        closure()
        assert method.decide() == method.decide() == (step % 3 == 0)
        if method.decide():
            with method.perturbed():
                closure()
        else:
            method.reuse_()
        assert method.sampled == (step % 3 == 0)
        optimizer.step()
    assert equal(a, b)


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (2.5, TypeError), ("5", TypeError)])
def test_bad_arguments(every, error):
    with pytest.raises(error, match="every: expected an integer"):
        PeriodicSAM(mlp(), every=every)
