"""Quantisation-aware training as Jacob et al. define it: ranges, levels, gradients, and what SAM leaves."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state
from quantized import (
    NETWORKS,
    assert_autocast,
    assert_learns,
    assert_resumes,
    assert_sam_counts_a_batch_once,
    assert_the_second_pass_alone_would_count,
    images,
    outputs,
)
from torch import nn
from torch.ao.quantization import MovingAverageMinMaxObserver

from ausam_ext import SAM
from benchmarks.networks import resnet18
from benchmarks.quantization import jacob
from benchmarks.quantization.layers import QuantizedLayer


def by_hand(x, low, high, levels=16):
    """Value and gradient of one number, in Python's float64."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (levels - 1), 1e-8)
    zero = min(max(round(-low / scale), 0), levels - 1)
    index = min(max(round(x / scale) + zero, 0), levels - 1)
    return (index - zero) * scale, float(-zero * scale <= x <= (levels - 1 - zero) * scale)


def fake_quantize(x, low, high, *levels):
    x = torch.tensor(x, requires_grad=True)
    y = jacob.fake_quantize(x, torch.tensor(low), torch.tensor(high), *levels)
    y.sum().backward()
    return y.detach(), x.grad


def test_an_example_by_hand():
    """s = 3.3 / 15 = .22, z = round(5.45) = 5: the range is nudged to [-1.1, 2.2]."""
    x = [-1.5, -1.2, -1, -0.1, 0, 0.1, 0.12, 0.35, 1, 2.1, 5]
    y, grad = fake_quantize(x, -1.2, 2.1)
    expected = [-1.1, -1.1, -1.1, 0, 0, 0, 0.22, 0.44, 1.1, 2.2, 2.2]
    torch.testing.assert_close(y, torch.tensor(expected))
    assert torch.equal(y, torch.fake_quantize_per_tensor_affine(torch.tensor(x), 0.22, 5, 0, 15))
    assert grad.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0]  # torch's operator by itself: 1 at -1.2


@pytest.mark.parametrize("levels", [16, 256])
@pytest.mark.parametrize(("low", "high"), [(-1.3, 0.9), (0.0, 5.7), (0.4, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_equals_the_definition_in_float64(low, high, levels):
    x = (torch.randn(500) * 3).tolist()
    y, grad = fake_quantize(x, low, high, levels)
    expected = [by_hand(v, low, high, levels) for v in x]
    torch.testing.assert_close(y, torch.tensor([v for v, _ in expected]), rtol=1e-5, atol=1e-6)
    assert grad.tolist() == [g for _, g in expected]
    assert len(y.unique()) <= levels and (y == 0).any()


@pytest.mark.parametrize(("share", "batches"), [(0.1, [[-1.0, 3.0], [-2.0, 2.0]]), (0.01, None)])
def test_ranges_of_activations_are_moving_averages(monkeypatch, share, batches):
    """At .1, after [-1, 3] and [-2, 2]: -1.1 and 2.9, so s = 4 / 15 = .26666667 and z = round(4.125) = 4."""
    monkeypatch.setattr(jacob, "AVERAGING", share)
    activation, observer = jacob.Activation(), MovingAverageMinMaxObserver(share, quant_min=0, quant_max=15)
    for x in map(torch.tensor, batches or torch.randn(20, 50).tolist()):
        y = activation(x)
        observer(x)
        torch.testing.assert_close(activation.low, observer.min_val, rtol=1e-6, atol=0)
        torch.testing.assert_close(activation.high, observer.max_val, rtol=1e-6, atol=0)
        scale, zero = observer.calculate_qparams()
        oracle = torch.fake_quantize_per_tensor_affine(x, scale.item(), zero.item(), 0, 15)
        torch.testing.assert_close(y, oracle, rtol=1e-5, atol=1e-6)
    if batches:
        assert activation.low.item() == pytest.approx(-1.1) and activation.high.item() == pytest.approx(2.9)
        assert scale.item() == pytest.approx(0.26666667) and zero.item() == 4


def test_evaluation_uses_the_last_range_and_keeps_it():
    activation = jacob.Activation()
    activation(torch.tensor([-1.0, 3.0]))
    before = copy.deepcopy(activation.eval().state_dict())
    y = activation(torch.tensor([-9.0, 9.0]))
    assert_same_state(activation.state_dict(), before)
    assert y.tolist() == pytest.approx([-4 * 4 / 15, 11 * 4 / 15])


def test_weights_are_quantised_over_their_own_range_now():
    layer = QuantizedLayer(nn.Linear(20, 30), jacob.Weight(), nn.Identity())
    x = torch.randn(4, 20)
    for factor in (1, 3):
        with torch.no_grad():
            layer.layer.weight *= factor
        w = layer.layer.weight.detach()
        low, high = w.min().item(), w.max().item()
        expected = torch.tensor([by_hand(v, low, high)[0] for v in w.flatten().tolist()]).view(30, 20)
        torch.testing.assert_close(layer(x), F.linear(x, expected, layer.layer.bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_what_is_quantised_in_a_network(name):
    """All convolutions and the linear layer, each ReLU's output, and the images, to 256 levels."""
    plain = NETWORKS[name]()
    model = jacob.quantize(copy.deepcopy(plain))
    of_plain = list(plain.modules())
    layers = [m for m in of_plain if isinstance(m, (nn.Conv2d, nn.Linear))]
    relus = [m for m in of_plain if isinstance(m, (nn.ReLU, nn.ReLU6))]
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    x, _ = images()
    weights = outputs(model, jacob.Weight, x)
    assert len(weights) == len(layers) and all(len(w.unique()) <= 16 for w in weights.values())
    activations = outputs(model, jacob.Activation, x)
    assert len(activations) == len(relus) + 1
    by_size = sorted((len(a.unique()), n) for n, a in activations.items())
    assert by_size[-1][1] == "0.x" and 16 < by_size[-1][0] <= 256
    assert all(1 < size <= 16 for size, _ in by_size[:-1])
    first = model[0].layer
    expected = F.conv2d(activations["0.x"], weights["0.weight"], None, first.stride, first.padding)
    assert torch.equal(model[0].eval()(x), expected)


def test_is_close_to_the_network_that_it_comes_from_with_many_levels(monkeypatch):
    plain = resnet18(width=4)
    model = copy.deepcopy(plain)
    monkeypatch.setattr(jacob.fake_quantize, "__defaults__", (1 << 14,))
    monkeypatch.setattr(jacob.Activation.__init__, "__defaults__", (1 << 14,))
    monkeypatch.setattr(jacob, "LEVELS_OF_IMAGES", 1 << 14)
    jacob.quantize(model)
    x, _ = images()
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_sam_moves_the_observers_in_the_first_pass_only(name):
    assert_sam_counts_a_batch_once(jacob.quantize(NETWORKS[name]()))
    assert_the_second_pass_alone_would_count(jacob.quantize(NETWORKS[name]()), {"low", "high"})


def test_the_second_pass_quantises_the_perturbed_weights():
    model = jacob.quantize(resnet18(width=2))
    x, y = images()
    F.cross_entropy(model(x), y).backward()
    with SAM(model, rho=0.5).perturbed():
        w = model[0].layer.weight.detach()
        quantised = outputs(model, jacob.Weight, x)["0.weight"]
        assert torch.equal(quantised, jacob.fake_quantize(w, w.min(), w.max()))
        F.cross_entropy(model(x), y).backward()
    assert not torch.equal(w, quantised)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_learns(name):
    assert_learns(jacob.quantize(NETWORKS[name]()))


def test_resumes():
    assert_resumes(*(jacob.quantize(resnet18(width=2)) for _ in range(2)))


def test_autocast():
    assert_autocast(jacob.quantize(resnet18(width=2)))


def test_is_made_where_the_model_is_and_in_its_mode():
    with torch.device("meta"):
        model = resnet18(width=2).eval()
    jacob.quantize(model)
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()), "Conv2d or Linear"),
        (lambda: nn.Conv2d(3, 3, 3), "Conv2d or Linear"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh()), "ReLU or ReLU6"),
        (lambda: jacob.quantize(resnet18(width=2)), "not quantised"),
    ],
)
def test_refuses_what_it_cannot_quantise(model, message):
    model = model()
    before = repr(model)
    with pytest.raises(ValueError, match=f"model: expected .*{message}"):
        jacob.quantize(model)
    assert repr(model) == before
