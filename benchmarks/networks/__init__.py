"""The networks of both papers' tables, and small ones for the CPU, by name.

Each takes ``classes`` and, by name, ``channels`` of the images (3) and what makes it smaller: ``width`` or
``alpha``. Weights keep torch's initialization. Every activation is a module of its own, so that it can be
followed by a quantiser.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from .mobilenet import mobilenet_v1
from .pyramid import pyramidnet110
from .resnet import resnet18, resnet50
from .small import digits_cnn, mlp, small_cnn
from .wide import wide_resnet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ResNet-18": resnet18,
    "ResNet-18, ImageNet stem": partial(resnet18, imagenet=True),
    "ResNet-50": resnet50,
    "WideResNet-28-10": wide_resnet,
    "WideResNet-28-10 as published": partial(wide_resnet, blocks=5),
    "PyramidNet-110": pyramidnet110,
    "MobileNetV1": mobilenet_v1,
    "digits CNN": digits_cnn,
    "small CNN": small_cnn,
    "MLP": mlp,
}

ANY_SIZE = ("digits CNN", "small CNN", "MLP")  # their last layer depends on the images' ``size``

# Those of the CIFAR tables, whose speed both papers print.
PAPERS = {name: NETWORKS[name] for name in ("ResNet-18", "WideResNet-28-10", "PyramidNet-110")}

__all__ = [
    "ANY_SIZE",
    "NETWORKS",
    "PAPERS",
    "digits_cnn",
    "mlp",
    "mobilenet_v1",
    "pyramidnet110",
    "resnet18",
    "resnet50",
    "small_cnn",
    "wide_resnet",
]
