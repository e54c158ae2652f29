"""AESAM: decides by the norm of the first pass's gradient."""

import math

import pytest
import torch
from baselines.flat import Flat, Linear, weights
from baselines.methods import equal, run
from networks import batch, closure_of, mlp

from ausam_ext import SAM
from ausam_ext.baselines import AESAM


def test_a_trace_by_hand():
    """T = 10; the squares of the norms are 25, 4, 9, 25, the thresholds 9.62, 8.06, 7.28, 8.99."""
    model = Linear()
    method, means, variances, sampled = AESAM(model, total_steps=10), [], [], []
    for g in ([3.0, 4.0], [2.0, 0.0], [0.0, 3.0], [4.0, 3.0]):
        sampled.append(method.backward(model.closure_of(g))[1] is not None)
        means.append(method.state_dict()["mean"])
        variances.append(method.state_dict()["variance"])
    assert sampled == [True, False, True, True]
    assert means == pytest.approx([2.5, 2.65, 3.285, 5.4565])
    assert variances == pytest.approx([50.625041, 45.744787, 44.436431, 78.187627], rel=1e-7)


def test_trains_as_written_down_in_float64(backend):
    model, steps, total = mlp(torch.float64), 30, 20
    flat, buffer, mean, variance = Flat(model), 0, 0.0, math.exp(-10)
    method = AESAM(model, 0.3, total_steps=total, decay=0.8, lambda1=-0.5, lambda2=1.5)
    sampled = run(model, method, steps)
    expected = []
    for t in range(steps):
        x, y = batch(seed=t, dtype=torch.float64)
        g, g_s = flat.sam_gradients(x, y, 0.3)
        n = (g @ g).item()
        mean = 0.8 * mean + 0.2 * n
        variance = 0.8 * variance + 0.2 * (n - mean) ** 2
        c = min(t, total) / total * -0.5 + (1 - min(t, total) / total) * 1.5
        expected.append(n >= mean + c * math.sqrt(variance))
        buffer = 0.9 * buffer + (g_s if expected[-1] else g)
        flat.w = flat.w - 0.1 * buffer
    assert sampled == expected and 3 < sum(expected) < 27 and expected[0]
    torch.testing.assert_close(weights(model), flat.w, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("limit", [-1e9, 1e9])
def test_limits_are_sam_and_plain_bit_for_bit(backend, limit):
    a, b = mlp(), mlp()
    sampled = run(a, AESAM(a, 0.3, total_steps=11, lambda1=limit, lambda2=limit))
    assert all(s == (limit < 0) for s in sampled)
    run(b, SAM(b, 0.3) if limit < 0 else None)
    assert equal(a, b)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_changes_nothing(bad):
    model = Linear()
    method = AESAM(model, total_steps=10)
    method.backward(model.closure_of([3.0, 4.0]))
    before = method.state_dict()
    assert method.backward(model.closure_of([bad, 1.0]))[1] is None
    after = method.state_dict()
    assert (after["mean"], after["variance"]) == (before["mean"], before["variance"])
    assert after["progress"] == [2]


def test_the_norm_is_unscaled():
    plain, scaled = Linear(), Linear()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=1)
    methods = [AESAM(plain, total_steps=10), AESAM(scaled, total_steps=10, scaler=scaler)]
    optimizer = torch.optim.SGD(scaled.parameters(), 1e-3)
    for step in range(6):
        g = [3.0 + step, 4.0 - step]
        methods[0].backward(plain.closure_of(g))
        scale = scaler.scale(torch.ones(())).item()
        methods[1].backward(scaled.closure_of([scale * v for v in g]))
        scaler.step(optimizer)
        scaler.update()
    ours, theirs = (m.state_dict() for m in methods)
    assert theirs["mean"] == pytest.approx(ours["mean"]) and ours["sampled"] == theirs["sampled"]
    assert theirs["variance"] == pytest.approx(ours["variance"])


def test_decides_once_after_backward():
    model, (x, y) = mlp(), batch()
    method = AESAM(model, total_steps=10)
    with pytest.raises(
        RuntimeError, match=r"decide\(\): no parameter has a gradient; AE-SAM decides by that"
    ):
        method.decide()
    closure_of(model, x, y)()
    assert method.decide() and method.decide()
    mean = method.state_dict()["mean"]
    with method.perturbed():
        torch.nn.functional.cross_entropy(model(x), y).backward()
    assert method.state_dict()["mean"] == mean > 0 and method.sampled


def test_a_clip_before_the_decision_is_refused():
    model, (x, y) = mlp(), batch()
    method = AESAM(model, total_steps=10)
    closure_of(model, x, y)()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    with pytest.raises(RuntimeError, match=r"decide\(\): the gradient was made smaller after the backward"):
        method.decide()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "total_steps"),
        ({"total_steps": 0}, ValueError, "total_steps: expected an integer"),
        ({"total_steps": 9, "decay": 1.0}, ValueError, "decay: expected a number from 0 to below 1, got 1.0"),
        ({"total_steps": 9, "lambda1": "x"}, TypeError, "lambda1: expected a number"),
        ({"total_steps": 9, "lambda2": math.inf}, ValueError, "lambda2: expected a number, got inf"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        AESAM(mlp(), **arguments)
