"""Two networks for the CPU."""

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


def mlp(classes: int = 10, *, channels: int = 3, size: int = 32) -> nn.Module:
    """One hidden layer of 32: a step costs little more than the calls it makes."""
    pixels = channels * size * size
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 32), nn.ReLU(), nn.Linear(32, classes))
