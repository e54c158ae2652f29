"""SimCC (arXiv 2107.03332): where a joint is, as two classifications, of its x and of its y.

Each pixel has ``SPLIT`` bins, so a head for images of 256x256 has 512 classes for x and as many for y. A
target is a pair of distributions over bins, ``[batch, joints, bins]`` each, and a weight ``[batch, joints]``,
0 for joints that are not labelled or not in the image. Places are ``[batch, joints, 2]``, x and y in pixels,
and sizes of images are ``(width, height)``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pckh import JOINTS, PAIRS

SPLIT = 2
SMOOTHING = 0.2
SIGMA = 6.0

Target = tuple[Tensor, Tensor, Tensor]


class SimCC(nn.Module):
    """``backbone`` makes ``channels`` feature maps of a quarter of the images' width and height; a 1x1
    convolution makes one map per joint of them, and two linear layers make logits of that."""

    def __init__(self, backbone: nn.Module, channels: int, size: tuple[int, int] = (256, 256)) -> None:
        super().__init__()
        width, height = size
        self.backbone, self.maps = backbone, nn.Conv2d(channels, JOINTS, 1)
        self.x, self.y = (nn.Linear(width // 4 * (height // 4), SPLIT * n) for n in size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of x and of y."""
        maps = self.maps(self.backbone(images)).flatten(2)
        return self.x(maps), self.y(maps)


def one_hot(places: Tensor, visible: Tensor, size: tuple[int, int], smoothing: float = SMOOTHING) -> Target:
    """``1 - smoothing`` in the bin of the joint, the rest in equal shares in the others."""

    def smoothed(index: Tensor, bins: int) -> Tensor:
        rest = torch.full((*index.shape, bins), smoothing / (bins - 1), device=index.device)
        return rest.scatter_(-1, index.clamp(0, bins - 1).unsqueeze(-1), 1 - smoothing)

    index = (SPLIT * places).round().long()
    inside = (index >= 0) & (index < SPLIT * index.new_tensor(size))
    x, y = (smoothed(i, SPLIT * n) for i, n in zip(index.unbind(-1), size, strict=True))
    return x, y, visible * inside.all(-1)


def gaussian(places: Tensor, visible: Tensor, size: tuple[int, int], sigma: float = SIGMA) -> Target:
    """The density of a normal distribution, of ``sigma`` bins, at each bin; nothing makes up for what lies
    beyond the image. A joint counts if it is not further than ``3 * sigma`` pixels from the image."""

    def density(place: Tensor, bins: int) -> Tensor:
        distance = torch.arange(bins, device=place.device) - SPLIT * place.unsqueeze(-1)
        return torch.exp(-0.5 * (distance / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))

    inside = (places >= -3 * sigma) & (places <= places.new_tensor(size) + 3 * sigma)
    x, y = (density(p, SPLIT * n) for p, n in zip(places.unbind(-1), size, strict=True))
    return x, y, visible * inside.all(-1)


def losses(logits: tuple[Tensor, Tensor], target: Target) -> Tensor:
    """Of each image ``[batch]``: the mean over joints of ``weight * (KL(x) + KL(y))``, in which ``KL`` is the
    mean, not the sum, over bins of ``t (ln t - ln softmax(logits))``."""
    *targets, weight = target
    x, y = (
        F.kl_div(z.log_softmax(-1), t, reduction="none").mean(-1)
        for z, t in zip(logits, targets, strict=True)
    )
    return (weight * (x + y)).mean(-1)


def probabilities(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The flip test: the mean of what the model says about the images and about their mirror images."""
    x, y = (z.softmax(-1) for z in model(images))
    swap = torch.arange(JOINTS, device=images.device)
    for right, left in PAIRS:
        swap[right], swap[left] = left, right
    flipped_x, flipped_y = (z.softmax(-1)[:, swap] for z in model(images.flip(-1)))
    # Pixel p becomes width - 1 - p, so bin b becomes SPLIT * (width - 1) - b.
    bins = SPLIT * (images.shape[-1] - 1) - torch.arange(x.shape[-1], device=images.device)
    return (x + flipped_x[..., bins.clamp(min=0)]) / 2, (y + flipped_y) / 2


def decode(x: Tensor, y: Tensor) -> Tensor:
    """Places of the largest logits or probabilities."""
    return torch.stack([x.argmax(-1), y.argmax(-1)], -1) / SPLIT
