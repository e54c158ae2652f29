"""ResNet-18 and ResNet-50 (arXiv 1512.03385): convolutions with BatchNorm, beside shortcuts.

Small images enter by a 3x3 convolution; large ones (``imagenet=True``) by 7x7 of stride 2 and a max pooling.
"""

from torch import Tensor, nn

from .layers import classifier, conv


class Basic(nn.Module):
    """Two convolutions of 3x3."""

    expansion = 1

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = (
            conv(channels, filters, 3, stride),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
        )
        self.conv2, self.bn2, self.relu2 = conv(filters, filters), nn.BatchNorm2d(filters), nn.ReLU()
        self.shortcut = shortcut(channels, filters, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride), and 1x1 to four times as many channels."""

    expansion = 4

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv(channels, filters, 1), nn.BatchNorm2d(filters), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = (
            conv(filters, filters, 3, stride),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
        )
        self.conv3, self.bn3, self.relu3 = (
            conv(filters, 4 * filters, 1),
            nn.BatchNorm2d(4 * filters),
            nn.ReLU(),
        )
        self.shortcut = shortcut(channels, 4 * filters, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        return self.relu3(self.bn3(self.conv3(y)) + self.shortcut(x))


def shortcut(channels: int, filters: int, stride: int) -> nn.Module:
    if stride == 1 and channels == filters:
        return nn.Identity()
    return nn.Sequential(conv(channels, filters, 1, stride), nn.BatchNorm2d(filters))


def resnet(
    block: type[Basic] | type[Bottleneck],
    blocks: tuple[int, int, int, int],
    classes: int,
    channels: int,
    width: int,
    imagenet: bool,
) -> nn.Module:
    """Four stages of so many blocks; the first convolutions of a stage have ``width << stage`` filters."""
    stem = conv(channels, width, 7, 2) if imagenet else conv(channels, width)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2, 1)] if imagenet else []
    channels = width
    for stage, number in enumerate(blocks):
        for i in range(number):
            filters = width << stage
            layers.append(block(channels, filters, stride=2 if stage and not i else 1))
            channels = filters * block.expansion
    return nn.Sequential(*layers, *classifier(channels, classes))


def resnet18(classes: int = 10, *, channels: int = 3, width: int = 64, imagenet: bool = False) -> nn.Module:
    return resnet(Basic, (2, 2, 2, 2), classes, channels, width, imagenet)


def resnet50(classes: int = 10, *, channels: int = 3, width: int = 64, imagenet: bool = False) -> nn.Module:
    return resnet(Bottleneck, (3, 4, 6, 3), classes, channels, width, imagenet)
