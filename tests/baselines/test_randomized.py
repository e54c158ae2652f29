"""RandomizedSAM: RST and G-RST."""

import math

import pytest
import torch
from baselines.flat import Flat, Linear, Quadratic, weights
from baselines.methods import equal, run
from networks import batch, mlp

from ausam_ext import SAM
from ausam_ext.baselines import RandomizedSAM


@pytest.mark.parametrize("weight", [1.0, 2.0, 0.3])
def test_trains_as_written_down_in_float64(backend, weight):
    model = mlp(torch.float64)
    flat, buffer = Flat(model), 0
    sampled = run(model, RandomizedSAM(model, 0.3, weight=weight, seed=4))
    assert 2 < sum(sampled) < 9
    for t, second in enumerate(sampled):
        x, y = batch(seed=t, dtype=torch.float64)
        g, g_s = flat.sam_gradients(x, y, 0.3)
        buffer = 0.9 * buffer + ((1 - weight) * g + weight * g_s if second else g)
        flat.w = flat.w - 0.1 * buffer
    torch.testing.assert_close(weights(model), flat.w, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rate", [1.0, 0.0])
def test_rate_one_is_sam_and_rate_zero_is_plain_bit_for_bit(backend, rate):
    a, b = mlp(), mlp()
    assert all(s == bool(rate) for s in run(a, RandomizedSAM(a, 0.3, rate=rate)))
    run(b, SAM(b, 0.3) if rate else None)
    assert equal(a, b)


def test_weight_zero_is_plain():
    a, b = mlp(), mlp()
    assert all(run(a, RandomizedSAM(a, 0.3, rate=1.0, weight=0.0)))
    run(b, None)
    assert equal(a, b)


def test_rate_times_weight_one_is_sam_in_expectation():
    """(3.6, 7.2) and (3, 4) have the mean (3.3, 5.6), SAM's gradient."""
    model = Quadratic()
    RandomizedSAM(model, 0.5, rate=1.0, weight=2.0).backward(model.closure)
    torch.testing.assert_close(model.w.grad, torch.tensor([3.6, 7.2], dtype=torch.float64))


@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_the_share_of_second_passes_is_the_rate(rate):
    model, steps = Linear(), 1500
    method = RandomizedSAM(model, rate=rate, seed=1)
    taken = sum(method.backward(model.closure_of([1.0, 2.0]))[1] is not None for _ in range(steps))
    assert abs(taken / steps - rate) < 4 * math.sqrt(rate * (1 - rate) / steps)


def test_the_rate_may_be_a_function_of_the_iteration():
    model, asked = mlp(), []

    def rate(t):
        asked.append(t)
        return float(t % 3 == 1)

    assert run(model, RandomizedSAM(model, 0.3, rate=rate)) == [t % 3 == 1 for t in range(11)]
    assert asked == list(range(11))


def test_seeds_differ_and_repeat():
    a, b, c = (run(m := mlp(), RandomizedSAM(m, seed=seed), 40) for seed in (0, 0, 1))
    assert a == b != c


def test_the_mix_is_of_all_trained_weights_and_is_seen_if_it_was_not_cleared():
    model, (x, y) = mlp(torch.float64), batch(dtype=torch.float64)
    flat = Flat(model)
    method = RandomizedSAM(model, 0.3, rate=1.0, weight=1.5, params=[model[0].weight])
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    g = flat.gradient(flat.w, x, y)
    shift = torch.zeros_like(g)
    shift[: model[0].weight.numel()] = g[: model[0].weight.numel()]
    g_s = flat.gradient(flat.w + 0.3 * shift / (shift.norm() + 1e-12), x, y)
    with method.perturbed():
        torch.nn.functional.cross_entropy(model(x), y).backward()
    got = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(got, 1.5 * g_s - 0.5 * g, rtol=1e-12, atol=1e-14)
    torch.optim.SGD(model.parameters(), 0.1).step()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match="still holds what the last step left"), method.perturbed():
        pass


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rate": 1.5}, ValueError, "rate: expected a number from 0 to 1, or a function, got 1.5"),
        ({"rate": "half"}, TypeError, "rate: expected a number"),
        ({"weight": float("nan")}, ValueError, "weight: expected a number, got nan"),
        ({"seed": -1}, ValueError, "seed: expected an integer"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        RandomizedSAM(mlp(), **arguments)


def test_a_function_that_gives_no_rate():
    model = Linear()
    method = RandomizedSAM(model, rate=lambda t: 2.0)
    with pytest.raises(ValueError, match="rate: expected a number from 0 to 1"):
        method.backward(model.closure_of([1.0, 1.0]))
