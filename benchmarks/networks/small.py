"""Small networks for the CPU."""

from collections.abc import Sequence

import torch
from torch import nn

from .layers import conv


def small_cnn(classes: int = 10, *, channels: int = 3, size: int = 32) -> nn.Module:
    """Four convolutions, 16 to 64 channels, on ``size`` pixels squared, laid out as is fastest on a CPU."""
    layers: list[nn.Module] = []
    for filters in (16, 32, 64, 64):
        layers += [conv(channels, filters), nn.BatchNorm2d(filters), nn.ReLU(), nn.MaxPool2d(2)]
        channels = filters
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (size // 16) ** 2, classes))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def digits_cnn(classes: int = 10, *, channels: int = 3, size: int = 32) -> nn.Module:
    """Three convolutions, 16 to 64 channels, and no bias beside BatchNorm's."""
    layers: list[nn.Module] = []
    for filters, pool in ((16, False), (32, True), (64, True)):
        layers += [conv(channels, filters), nn.BatchNorm2d(filters), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        channels = filters
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (size // 4) ** 2, classes))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def mlp(classes: int = 10, *, channels: int = 3, size: int = 32, hidden: Sequence[int] = (32,)) -> nn.Module:
    """With one hidden layer of 32, a step costs little more than the calls it makes. No BatchNorm."""
    layers: list[nn.Module] = [nn.Flatten()]
    features = channels * size * size
    for width in hidden:
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))
