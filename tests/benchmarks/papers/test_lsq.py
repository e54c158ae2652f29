"""Learned step size quantisation: values, gradients, where steps start, and what SAM makes of them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from networks import closure_of
from quantized import (
    NETWORKS,
    assert_autocast,
    assert_learns,
    assert_resumes,
    assert_sam_counts_a_batch_once,
    images,
    outputs,
)
from torch import nn

from ausam_ext import SAM
from benchmarks.networks import resnet18
from benchmarks.quantization import lsq
from benchmarks.quantization.layers import QuantizedLayer

V = [-5, -0.6, 0.2, 0.3, 0.9, 3.4, 9]


def quantize(v, step, low, high, number=1, upstream=None):
    """Values, gradient of the values, gradient of the step."""
    v = v.detach().requires_grad_()
    step = torch.tensor(step, dtype=v.dtype, requires_grad=True)
    y = lsq.quantize_lsq(v, step, low, high, number)
    y.backward(torch.ones_like(y) if upstream is None else upstream)
    return y.detach(), v.grad, step.grad


def by_hand(v, step, low, high):
    """Value, and both derivatives, of one number."""
    ratio = v / step
    if ratio <= low:
        return low * step, 0.0, low
    if ratio >= high:
        return high * step, 0.0, high
    return round(ratio) * step, 1.0, round(ratio) - ratio


def test_an_example_by_hand():
    """v / s = -10, -1.2, .4, .6, 1.8, 6.8, 18; the gradient of s adds up to -.4, times 1 / sqrt(7 * 7)."""
    v = torch.tensor(V, dtype=torch.float64)
    y, grad, of_step = quantize(v, 0.5, -8, 7, number=7)
    assert y.tolist() == [-4, -0.5, 0, 0.5, 1, 3.5, 3.5] and grad.tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert of_step.item() == pytest.approx(-0.057142857, rel=1e-7)
    each = [quantize(v[i : i + 1], 0.5, -8, 7, number=7)[2].item() * 7 for i in range(7)]
    assert each == pytest.approx([-8, 0.2, -0.4, 0.4, 0.2, 0.2, 7])


def test_the_example_equals_torch():
    v = torch.tensor(V, requires_grad=True)
    step, zero = torch.tensor([0.5], requires_grad=True), torch.zeros(1)
    oracle = torch._fake_quantize_learnable_per_tensor_affine(v, step, zero, -8, 7, 1 / 7)
    oracle.sum().backward()
    y, grad, of_step = quantize(v, 0.5, -8, 7, number=7)
    assert torch.equal(y, oracle) and torch.equal(grad, v.grad)
    torch.testing.assert_close(of_step, step.grad[0])


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (0, 15), (-128, 127), (0, 255)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_definition(dtype, low, high):
    v, upstream = torch.randn(2, 400, dtype=dtype)
    v = v * high * 0.4
    y, grad, of_step = quantize(v, 0.31, low, high, number=50, upstream=upstream)
    values, inside, steps = zip(*(by_hand(x, 0.31, low, high) for x in v.tolist()), strict=True)
    assert 0 < sum(inside) < 400
    torch.testing.assert_close(y, torch.tensor(values, dtype=dtype))
    torch.testing.assert_close(grad, torch.tensor(inside, dtype=dtype) * upstream)
    expected = sum(s * u for s, u in zip(steps, upstream.tolist(), strict=True)) / math.sqrt(50 * high)
    torch.testing.assert_close(of_step, torch.tensor(expected, dtype=dtype), rtol=1e-4, atol=1e-4)


def test_half_a_step_beyond_the_outer_levels_is_outside():
    """v / s = 7.2 and -8.4: torch's operator rounds first and takes both as inside."""
    for v, bound in ((3.6, 7), (-4.2, -8)):
        y, grad, of_step = quantize(torch.tensor([v]), 0.5, -8, 7)
        assert (y.item(), grad.item()) == (bound * 0.5, 0)
        assert of_step.item() == pytest.approx(bound / math.sqrt(7))


@pytest.mark.parametrize("step", [-0.5, 0.0, -1e-9, 1e-9])
def test_steps_below_zero_count_by_their_size(step):
    v = torch.tensor(V)
    y, _, of_step = quantize(v, step, -8, 7)
    positive, _, of_positive = quantize(v, max(abs(step), 1e-8), -8, 7)
    assert torch.equal(y, positive) and of_step == (-of_positive if step < 0 else of_positive) != 0


def test_where_steps_start():
    """2 mean|v| / sqrt(7) = 2 * 19.4 / 7 / 2.6457513 = 2.0950031."""
    assert lsq.Weight(4, torch.tensor(V)).step.item() == pytest.approx(2.0950031, rel=1e-7)
    activation = lsq.Activation(4, signed=False)
    first, second = torch.rand(2, 6, 5, 3)
    activation.eval()(first)
    assert activation.step == 1 and not activation.started
    activation.train()(first)
    start = activation.step.item()
    assert start == pytest.approx(2 * first.mean().item() / math.sqrt(15)) and activation.started
    activation(3 * second)
    activation.eval()(3 * second)
    assert activation.step == start


def test_the_gradient_of_a_step_does_not_depend_on_the_batch_size():
    """N is the features of one sample: twice the same samples, twice the sum of gradients."""
    x, grads = torch.rand(4, 3, 5, dtype=torch.float64), []
    for batch in (x, x.repeat(2, 1, 1)):
        activation = lsq.Activation(4, signed=False).double()
        activation(batch).sum().backward()
        grads.append(activation.step.grad.item())
    _, _, of_step = quantize(x, activation.step.item(), 0, 15, number=15)
    assert grads == pytest.approx([of_step.item(), 2 * of_step.item()])


@pytest.mark.parametrize("ends", [8, None])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_what_is_quantised_in_a_network(name, ends):
    """Weight and input of each layer, to 4 bits; the first and the last layer to 8, or not at all."""
    plain = NETWORKS[name]()
    layers = [n for n, m in plain.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    model = lsq.quantize(copy.deepcopy(plain), ends=ends)
    quantized = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}
    assert list(quantized) == (layers if ends else layers[1:-1])
    steps = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert steps == 2 * len(quantized)
    for n, m in quantized.items():
        bits = 8 if n in (layers[0], layers[-1]) else 4
        assert (m.weight.low, m.weight.high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert (m.x.low, m.x.high) == ((-128, 127) if n == layers[0] else (0, 2**bits - 1))
    x, _ = images()
    levels = {n: len(y.unique()) for n, y in outputs(model, lsq.Quantizer, x).items()}
    assert len(levels) == 2 * len(quantized)
    inner = [count for n, count in levels.items() if n.rpartition(".")[0] in layers[1:-1]]
    assert all(1 < count <= 16 for count in inner)
    assert not ends or max(levels.values()) > 16


def test_a_layer_computes_with_what_is_quantised():
    layer = QuantizedLayer(nn.Linear(20, 30), lsq.Weight(4, torch.ones(1)), lsq.Activation(4, signed=False))
    with torch.no_grad():
        layer.weight.step.fill_(0.02)
    x = torch.rand(4, 20)
    y = layer(x)
    quantised = [
        torch.tensor([by_hand(v, step.item(), low, high)[0] for v in t.flatten().tolist()]).view_as(t)
        for t, step, low, high in ((x, layer.x.step, 0, 15), (layer.layer.weight, layer.weight.step, -8, 7))
    ]
    torch.testing.assert_close(y, F.linear(*quantised, layer.layer.bias))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_sam_starts_steps_in_the_first_pass_only(name):
    assert_sam_counts_a_batch_once(lsq.quantize(NETWORKS[name]()))


def test_sam_perturbs_steps_with_the_other_parameters():
    """e = rho g / ||g|| over all of them; float64, w + e by hand."""
    model = lsq.quantize(resnet18(width=2)).double()
    x, y = images()
    x = x.double()
    model(x)
    by_hand = copy.deepcopy(model)
    grads = torch.autograd.grad(F.cross_entropy(by_hand(x), y), list(by_hand.parameters()))
    norm = torch.cat([g.flatten() for g in grads]).norm()
    with torch.no_grad():
        for p, g in zip(by_hand.parameters(), grads, strict=True):
            p += 0.5 * g / norm
    closure_of(by_hand, x, y)()
    before = copy.deepcopy(model.state_dict())
    SAM(model, rho=0.5).backward(closure_of(model, x, y))
    for (name, p), q in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-9, msg=name)
        assert torch.equal(p, before[name]) and not torch.equal(p, q)
    assert any(name.endswith("step") for name in before)


def test_far_perturbations_leave_everything_finite():
    """At rho = 1000 steps are far below 0 at w + e."""
    model = lsq.quantize(resnet18(width=2))
    x, y = images()
    closure = closure_of(model, x, y)
    closure()
    with SAM(model, rho=1000).perturbed():
        assert min(p.item() for n, p in model.named_parameters() if n.endswith("step")) < -0.1
        assert closure().isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_learns(name):
    assert_learns(lsq.quantize(NETWORKS[name]()))


def test_resumes():
    assert_resumes(*(lsq.quantize(resnet18(width=2)) for _ in range(2)))


def test_autocast():
    assert_autocast(lsq.quantize(resnet18(width=2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_256_levels_of_16_bit_inputs(dtype):
    """bfloat16 has no fractions at 200: the rest of v / s, which is the step's gradient, would be lost."""
    v = torch.tensor([0.2004]).to(dtype)
    y, _, of_step = quantize(v.float(), 0.001, 0, 255)
    step = torch.tensor(0.001, requires_grad=True)
    low = lsq.quantize_lsq(v, step, 0, 255, 1)
    low.backward(torch.ones_like(low))
    assert low.dtype == dtype and low == y.to(dtype)
    torch.testing.assert_close(step.grad, of_step)


@pytest.mark.parametrize(
    ("model", "ends", "error", "message"),
    [
        (lambda: nn.Sequential(nn.ReLU()), 8, ValueError, "model: expected .*Conv2d or Linear"),
        (lambda: lsq.quantize(resnet18(width=2)), 8, ValueError, "model: expected .*not quantised"),
        (lambda: resnet18(width=2), 1, ValueError, "ends: expected"),
        (lambda: resnet18(width=2), 8.0, TypeError, "ends: expected"),
    ],
)
def test_refuses_what_it_cannot_quantise(model, ends, error, message):
    model = model()
    before = repr(model)
    with pytest.raises(error, match=message):
        lsq.quantize(model, ends=ends)
    assert repr(model) == before
