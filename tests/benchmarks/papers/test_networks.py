"""The networks are those of the papers: as many weights and layers, and strides as they state."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.networks import NETWORKS, PAPERS, mobilenet_v1, pyramidnet110, resnet18, resnet50, wide_resnet
from benchmarks.networks.pyramid import PyramidBlock
from benchmarks.networks.resnet import Basic, Bottleneck
from benchmarks.networks.wide import WideBlock

SMALL = {
    "ResNet-18": {"width": 4},
    "ResNet-18, ImageNet stem": {"width": 4},
    "ResNet-50": {"width": 4},
    "WideResNet-28-10": {"width": 1},
    "WideResNet-28-10 as published": {"width": 1},
    "PyramidNet-110": {"alpha": 10},  # below 54, so that some blocks are as wide as the one before
    "MobileNetV1": {"width": 4},
    "digits CNN": {},
    "small CNN": {},
    "MLP": {},
}


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("ResNet-18", 10, 11_173_962),
        ("ResNet-18", 100, 11_220_132),
        ("ResNet-18, ImageNet stem", 1000, 11_689_512),
        ("ResNet-50", 200, 23_910_152),
        ("WideResNet-28-10", 10, 36_479_194),
        ("WideResNet-28-10", 100, 36_536_884),
        ("WideResNet-28-10 as published", 10, 46_160_474),
        ("WideResNet-28-10 as published", 100, 46_218_164),
        ("PyramidNet-110", 10, 28_485_477),
        ("PyramidNet-110", 100, 28_511_307),
        ("MobileNetV1", 10, 3_217_226),
        ("MobileNetV1", 200, 3_411_976),
    ],
)
def test_parameter_counts_are_the_published_ones(name, classes, parameters):
    with torch.device("meta"):
        assert size(NETWORKS[name](classes)) == parameters


def test_the_stem_of_resnet50_for_large_images():
    with torch.device("meta"):
        assert size(resnet50(1000, imagenet=True)) == 25_557_032


def test_networks_of_the_cifar_tables_are_in_the_registry():
    assert list(PAPERS) == ["ResNet-18", "WideResNet-28-10", "PyramidNet-110"]
    assert set(SMALL) == set(NETWORKS)


@pytest.mark.parametrize(
    ("name", "depth"),
    [("ResNet-18", 18), ("ResNet-18, ImageNet stem", 18), ("ResNet-50", 50), ("PyramidNet-110", 110)],
)
def test_layers_are_as_many_as_the_name_says(name, depth):
    """Convolutions and the linear layer, but for the convolutions of shortcuts."""
    with torch.device("meta"):
        model = NETWORKS[name]()
    layers = [
        m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "shortcut" not in n
    ]
    assert len(layers) == depth


@pytest.mark.parametrize(("name", "depth"), [("WideResNet-28-10", 28), ("WideResNet-28-10 as published", 34)])
def test_depth_of_wide_resnets_counts_convolutions_with_shortcuts(name, depth):
    with torch.device("meta"):
        assert sum(isinstance(m, nn.Conv2d) for m in NETWORKS[name]().modules()) == depth


@pytest.mark.parametrize(
    ("network", "pixels", "shape"),
    [
        (lambda: resnet18(width=2), 32, (16, 4, 4)),
        (lambda: resnet18(width=2, imagenet=True), 224, (16, 7, 7)),
        (lambda: resnet50(width=2), 64, (64, 8, 8)),
        (lambda: wide_resnet(width=1), 32, (64, 8, 8)),
        (lambda: pyramidnet110(alpha=54), 32, (70, 8, 8)),
        (lambda: mobilenet_v1(width=2), 224, (64, 4, 4)),
        (lambda: mobilenet_v1(width=2), 32, (64, 1, 1)),
    ],
)
def test_strides(network, pixels, shape):
    """What the classifier takes the mean of."""
    with torch.device("meta"):
        model = network()
        features = model[:-3](torch.empty(2, 3, pixels, pixels))
    assert features.shape[1:] == shape


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("ResNet-18", {32: 2, 16: 2, 8: 2, 4: 2}),
        ("ResNet-18, ImageNet stem", {8: 2, 4: 2, 2: 2, 1: 2}),
        ("ResNet-50", {32: 3, 16: 4, 8: 6, 4: 3}),
        ("WideResNet-28-10", {32: 4, 16: 4, 8: 4}),
        ("WideResNet-28-10 as published", {32: 5, 16: 5, 8: 5}),
        ("PyramidNet-110", {32: 18, 16: 18, 8: 18}),
    ],
)
def test_blocks_of_each_resolution(name, blocks):
    found = Counter()
    with torch.device("meta"):
        x = torch.empty(2, 3, 32, 32)
        for module in NETWORKS[name]()[:-3]:
            x = module(x)
            found[x.shape[-1]] += type(module).__module__.startswith("benchmarks")
    assert +found == blocks


def without(layer):
    with torch.no_grad():
        layer.weight.zero_()


def test_shortcuts():
    """What a block computes if its other branch is 0."""
    x = torch.randn(2, 4, 6, 6)
    for kind, last in ((Basic, "bn2"), (Bottleneck, "bn3")):
        block = kind(4, 4 // kind.expansion, 1)
        without(getattr(block, last))
        assert torch.equal(block(x), x.relu())
        block = kind(4, 6, 2)
        without(getattr(block, last))
        reduced = F.conv2d(x, block.shortcut[0].weight, stride=2)
        torch.testing.assert_close(block(x), F.batch_norm(reduced, None, None, training=True).relu())
    block = WideBlock(4, 6, 2)
    without(block.conv2)
    activated = F.batch_norm(x, None, None, training=True).relu()
    torch.testing.assert_close(block(x), F.conv2d(activated, block.shortcut.weight, stride=2))
    block = PyramidBlock(4, 6, 2)
    without(block.bn3)
    y = block(x)
    torch.testing.assert_close(y[:, :4], x.view(2, 4, 3, 2, 3, 2).mean((3, 5)))
    assert not y[:, 4:].any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_networks_learn_from_small_images(name, channels):
    """Each weight has a gradient, and one step along it lowers the loss."""
    model = NETWORKS[name](7, channels=channels, **SMALL[name])
    x, y = torch.randn(4, channels, 32, 32), torch.tensor([0, 3, 6, 3])
    logits = model(x)
    assert logits.shape == (4, 7) and logits.std() > 0
    loss = F.cross_entropy(logits, y)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        squared = sum(p.grad.square().sum() for p in model.parameters())
        for p in model.parameters():
            p -= 0.01 / squared * p.grad  # lowers the loss by 0.01 to first order
        assert F.cross_entropy(model(x), y) < loss


@pytest.mark.parametrize("name", ["small CNN", "MLP"])
def test_small_networks_take_other_sizes(name):
    assert NETWORKS[name](3, channels=1, size=28)(torch.randn(2, 1, 28, 28)).shape == (2, 3)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_activations_are_modules_of_their_own(name):
    """One that two places shared, or a function, could not be followed by a quantiser."""
    model, calls = NETWORKS[name](**SMALL[name]), []
    for m in model.modules():
        if isinstance(m, (nn.ReLU, nn.ReLU6)):
            m.register_forward_hook(lambda m, *_: calls.append(id(m)))
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    assert calls and len(calls) == len(set(calls))


def test_mobilenet_has_relu6():
    kinds = {type(m) for m in mobilenet_v1(width=2).modules()}
    assert nn.ReLU6 in kinds and nn.ReLU not in kinds
