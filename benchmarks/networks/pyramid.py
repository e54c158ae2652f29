"""PyramidNet-110 of basic blocks (arXiv 1610.02915): each block is a little wider than the one before."""

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import classifier, conv


class PyramidBlock(nn.Module):
    """BatchNorm at both ends and between, one ReLU, a shortcut padded with zeros."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, filters - channels
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, filters, 3, stride)
        self.bn2, self.relu = nn.BatchNorm2d(filters), nn.ReLU()
        self.conv2, self.bn3 = conv(filters, filters), nn.BatchNorm2d(filters)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv2(self.relu(self.bn2(self.conv1(self.bn1(x))))))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        return y + F.pad(x, (0, 0, 0, 0, 0, self.extra))


def pyramidnet110(classes: int = 10, *, channels: int = 3, alpha: int = 270) -> nn.Module:
    """Three stages of 18 blocks, from 16 to ``16 + alpha`` channels."""
    layers: list[nn.Module] = [conv(channels, 16), nn.BatchNorm2d(16)]
    channels = 16
    for block in range(54):
        filters = 16 + alpha * (block + 1) // 54
        layers.append(PyramidBlock(channels, filters, stride=2 if block in (18, 36) else 1))
        channels = filters
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), *classifier(channels, classes))
