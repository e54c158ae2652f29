"""Images like CIFAR's, generated: in memory, or encoded, so that loading them is work."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .in_memory import InMemory


def smooth(samples: int, channels: int, size: int, generator: torch.Generator) -> Tensor:
    """``[samples, channels, size, size]``, about from 0 to 1, without detail."""
    coarse = torch.rand(samples, channels, 6, 6, generator=generator)
    return F.interpolate(coarse, size=size, mode="bicubic", antialias=True)


def generate(samples: int) -> tuple[Tensor, Tensor]:
    """``[samples, 3, 32, 32]``, uint8, smooth with some noise as photographs are, and labels from 0 to 9."""
    generator = torch.Generator().manual_seed(0)
    images = smooth(samples, 3, 32, generator) * 230
    images += 25 * torch.rand(images.shape, generator=generator)
    return images.clamp(0, 255).byte(), torch.randint(10, (samples,), generator=generator)


def in_memory(samples: int, device: str) -> InMemory:
    """Those of :func:`generate`, normalised."""
    x, y = generate(samples)
    return InMemory((x.to(device).float() / 255 - 0.5) / 0.25, y.to(device))


class Encoded(Dataset[tuple[Tensor, Tensor, int]]):
    """PNG files in memory: decoded, cropped, flipped and cut out one by one, as the papers train on CIFAR."""

    def __init__(self, samples: int) -> None:
        x, self.y = generate(samples)
        self.files = [_png(image) for image in x.permute(0, 2, 3, 1).numpy()]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        with Image.open(io.BytesIO(self.files[index])) as file:
            pixels = np.array(file)
        x = (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.25
        top, left, flip, cut, row, column = (
            (torch.rand(6) * torch.tensor([9, 9, 2, 2, 32, 32])).int().tolist()
        )
        x = F.pad(x, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
        x = x.flip(2) if flip else x.clone()
        if cut:
            x[:, max(0, row - 8) : row + 8, max(0, column - 8) : column + 8] = 0
        return x, self.y[index], index


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
