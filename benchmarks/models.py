"""The networks that the papers train on CIFAR, and a small one for the CPU.

Images are ``[batch, 3, 32, 32]``. Weights keep torch's initialization: it does not change what a step costs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(channels: int, filters: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, filters, size, stride, padding=size // 2, bias=False)


class ResNetBlock(nn.Module):
    """Two convolutions, each with BatchNorm after it (arXiv 1512.03385)."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(channels, filters, stride=stride), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = conv(filters, filters), nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != filters:
            self.shortcut = nn.Sequential(conv(channels, filters, 1, stride), nn.BatchNorm2d(filters))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet18(classes: int = 10, width: int = 64) -> nn.Module:
    """ResNet-18 for small images: a 3x3 stem without pooling, ``width`` to ``8 * width`` channels."""
    layers: list[nn.Module] = [conv(3, width), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for stage in range(4):
        for block in range(2):
            filters = width << stage
            layers.append(ResNetBlock(channels, filters, stride=2 if stage and not block else 1))
            channels = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each of two convolutions (arXiv 1605.07146), dropout 0."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, filters, stride=stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(filters), conv(filters, filters)
        self.shortcut = None if channels == filters else conv(channels, filters, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)  # of the activated input, as the original
        return x + self.conv2(F.relu(self.bn2(self.conv1(y))))


def wide_resnet28_10(classes: int = 10) -> nn.Module:
    """WideResNet-28-10: three stages of four blocks, ten times as wide as the first convolution."""
    layers: list[nn.Module] = [conv(3, 16)]
    channels = 16
    for stage, filters in enumerate((160, 320, 640)):
        for block in range(4):
            layers.append(WideBlock(channels, filters, stride=2 if stage and not block else 1))
            channels = filters
    head = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(channels, classes))


class PyramidBlock(nn.Module):
    """BatchNorm at both ends and between, one ReLU, a shortcut padded with zeros (arXiv 1610.02915)."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, filters - channels
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, filters, stride=stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(filters), conv(filters, filters)
        self.bn3 = nn.BatchNorm2d(filters)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv2(F.relu(self.bn2(self.conv1(self.bn1(x))))))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        return y + F.pad(x, (0, 0, 0, 0, 0, self.extra))


def pyramidnet110(classes: int = 10, alpha: int = 270) -> nn.Module:
    """PyramidNet-110 of basic blocks: three stages of 18, each block ``alpha / 54`` channels wider."""
    layers: list[nn.Module] = [conv(3, 16), nn.BatchNorm2d(16)]
    channels = 16
    for block in range(54):
        filters = 16 + alpha * (block + 1) // 54
        layers.append(PyramidBlock(channels, filters, stride=2 if block in (18, 36) else 1))
        channels = filters
    head = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(channels, classes))


def small_cnn(classes: int = 10) -> nn.Module:
    """Four convolutions, 16 to 64 channels, laid out as is fastest on a CPU."""
    layers: list[nn.Module] = []
    channels = 3
    for filters in (16, 32, 64, 64):
        layers += [conv(channels, filters), nn.BatchNorm2d(filters), nn.ReLU(), nn.MaxPool2d(2)]
        channels = filters
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 2 * 2, classes))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def mlp(classes: int = 10) -> nn.Module:
    """One hidden layer on 3x32x32 pixels: a step costs little more than the calls it makes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 32), nn.ReLU(), nn.Linear(32, classes))


PAPERS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": resnet18,
    "WideResNet-28-10": wide_resnet28_10,
    "PyramidNet-110": pyramidnet110,
}
