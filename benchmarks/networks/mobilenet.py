"""MobileNetV1 (arXiv 1704.04861): convolutions of each channel by itself, and of 1x1 over all of them.

The stem and both last blocks have stride 2, as the paper's table prints them, so that an image of 224 pixels
ends at 4x4. The activation is ReLU6.
"""

from torch import nn

from .layers import classifier, conv

# Filters of the 1x1 convolution, as multiples of the stem's, and stride of the other.
BLOCKS = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *[(16, 1)] * 5, (32, 2), (32, 2))


def mobilenet_v1(classes: int = 10, *, channels: int = 3, width: int = 32) -> nn.Module:
    def activated(layer: nn.Conv2d) -> list[nn.Module]:
        return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU6()]

    layers = activated(conv(channels, width, 3, 2))
    channels = width
    for multiple, stride in BLOCKS:
        layers += activated(conv(channels, channels, 3, stride, groups=channels))
        layers += activated(conv(channels, multiple * width, 1))
        channels = multiple * width
    return nn.Sequential(*layers, *classifier(channels, classes))
