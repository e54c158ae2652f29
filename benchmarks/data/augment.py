"""The papers' augmentation, of a batch at once and on its device: crop, flip, Cutout.

As in the code of both papers: four black pixels around an image and a window of its own size in them; a flip
left to right for every second one; then pixels are normalised, and for every second image a square, its
middle anywhere in the image, is set to 0, the mean.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Statistics = Sequence[float] | Tensor  # one for each channel


def normalise(x: Tensor, mean: Statistics, std: Statistics) -> Tensor:
    """``(x / 255 - mean) / std`` for each channel: uint8 [B, C, H, W] to float32.

    On a GPU, ``mean`` and ``std`` that are tensors there save a synchronisation.
    """
    _check(x, mean, std)
    middle, spread = (torch.as_tensor(v, dtype=torch.float32, device=x.device) for v in (mean, std))
    return (x.float() / 255 - middle.view(1, -1, 1, 1)) / spread.view(1, -1, 1, 1)


def augment(
    x: Tensor,
    mean: Statistics,
    std: Statistics,
    generator: torch.Generator,
    *,
    pad: int = 4,
    cutout: int = 16,
) -> Tensor:
    """Cropped, flipped, normalised and cut out: uint8 [B, C, H, W] to float32; ``x`` is not changed.

    ``pad``: black pixels at each side that a crop may reach into, 0 for no crop. ``cutout``: side of the
    square, 0 for none. ``generator``: on x's device. All random numbers of a batch are drawn from it whatever
    ``pad`` and ``cutout`` are; the same state gives the same images (on the same kind of device: a GPU's
    numbers are others).
    """
    _check(x, mean, std)
    batch, channels, height, width = x.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch, 1), generator=generator, device=x.device)

    top, left, flip, cut = draw(2 * pad + 1), draw(2 * pad + 1), draw(2), draw(2)
    row, column = draw(height), draw(width)
    y, z = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    image = torch.arange(batch, device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=x.device).view(1, -1, 1, 1)
    columns = left + torch.where(flip == 1, width - 1 - z, z)
    padded = F.pad(x, (pad, pad, pad, pad))
    cropped = padded[image, channel, (top + y).view(batch, 1, height, 1), columns.view(batch, 1, 1, width)]
    if not cutout:
        return normalise(cropped, mean, std)
    rows, columns = _within(y, row, cutout), _within(z, column, cutout)
    hole = (cut == 1).view(-1, 1, 1, 1) & rows.view(batch, 1, height, 1) & columns.view(batch, 1, 1, width)
    return normalise(cropped, mean, std).masked_fill_(hole, 0)


def _within(places: Tensor, middle: Tensor, side: int) -> Tensor:
    return (places >= middle - side // 2) & (places < middle - side // 2 + side)


def _check(x: Tensor, mean: Statistics, std: Statistics) -> None:
    if x.dtype != torch.uint8 or x.dim() != 4 or not x.shape[1] == len(mean) == len(std):
        raise ValueError(
            f"x: expected uint8 of shape [B, {len(mean)}, H, W], one channel for each mean and std, "
            f"got {x.dtype} of shape {list(x.shape)}, {len(mean)} means and {len(std)} stds"
        )
