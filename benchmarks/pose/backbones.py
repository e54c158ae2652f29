"""What makes the feature maps for SimCC, of a quarter of the images' width and height."""

import importlib
from typing import Any

from torch import Tensor, nn

from ..networks.layers import conv


def small_backbone(channels: int = 16) -> nn.Module:
    """Three convolutions, for small images on a CPU."""

    def activated(*arguments: int) -> list[nn.Module]:
        return [layer := conv(*arguments), nn.BatchNorm2d(layer.out_channels), nn.ReLU()]

    return nn.Sequential(
        *activated(3, channels, 3, 2), *activated(channels, channels, 3, 2), *activated(channels, channels)
    )


class HRNetW32(nn.Module):
    """timm's HRNet-W32: its 32 feature maps of the highest resolution.

    The last stage's layers that make maps of lower resolution, which nothing would use, are left out, as in
    the original network for poses.

    Args:
        pretrained: with timm's weights, trained on ImageNet, which it downloads.

    Raises:
        ImportError: timm cannot be imported.
    """

    channels = 32

    def __init__(self, pretrained: bool = False) -> None:
        super().__init__()
        try:
            timm: Any = importlib.import_module("timm")
        except (ImportError, RuntimeError) as error:  # torchvision raises the second beside another torch
            raise ImportError(
                f"HRNetW32: expected that timm can be imported, got {error!r}; install timm, and torchvision "
                "from the index that torch is from"
            ) from error
        arguments = {"features_only": True, "feature_location": "", "out_indices": (1,)}
        self.network = timm.create_model("hrnet_w32", pretrained=pretrained, **arguments)
        last = self.network.stage4[-1]
        last.fuse_layers = last.fuse_layers[:1]

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]
