"""What several of the networks are made of."""

from torch import nn


def conv(channels: int, filters: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, filters, size, stride, size // 2, groups=groups, bias=False)


def classifier(channels: int, classes: int) -> list[nn.Module]:
    """The mean of each channel over the image, and one linear layer on these."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
