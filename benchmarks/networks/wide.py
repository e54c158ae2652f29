"""WideResNet-28-10 (arXiv 1605.07146, dropout 0), and what the papers' code calls by that name.

A depth of 28 means 3 stages of 4 blocks of 2 convolutions, the first one, and 3 shortcuts that are
convolutions. The official code of both AUSAM and vSAM has 5 blocks in a stage, which makes 34 layers and a
quarter more weights.
"""

from torch import Tensor, nn

from .layers import classifier, conv


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each of two convolutions."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.relu1, self.conv1 = (
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            conv(channels, filters, 3, stride),
        )
        self.bn2, self.relu2, self.conv2 = nn.BatchNorm2d(filters), nn.ReLU(), conv(filters, filters)
        self.shortcut = None if channels == filters else conv(channels, filters, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)  # of the activated input, as the original
        return x + self.conv2(self.relu2(self.bn2(self.conv1(y))))


def wide_resnet(classes: int = 10, *, channels: int = 3, width: int = 10, blocks: int = 4) -> nn.Module:
    """Three stages of ``blocks`` blocks, ``width`` times as wide as the first convolution's 16."""
    layers: list[nn.Module] = [conv(channels, 16)]
    channels = 16
    for stage in range(3):
        for block in range(blocks):
            filters = width * 16 << stage
            layers.append(WideBlock(channels, filters, stride=2 if stage and not block else 1))
            channels = filters
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), *classifier(channels, classes))
