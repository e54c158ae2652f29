"""Images and labels in memory, and the errors of files that are not what they should be.

Every reader takes ``made``: False for a data set as it is distributed, which has to be whole; True for the
small files that :mod:`benchmarks.data.made_files` writes, which have as many images as one likes.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """``x``: uint8, [N, C, H, W]; ``y``: int64, [N], from 0 to ``classes`` - 1.

    ``mean`` and ``std``: of the data set's training images, from 0 to 1, one number for each channel.
    """

    x: Tensor
    y: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.y)


def wrong(name: object, expected: str, got: object) -> ValueError:
    return ValueError(f"{name}: expected {expected}, got {got}")


def damaged(name: object, expected: str, error: Exception) -> ValueError:
    return wrong(name, expected, f"{type(error).__name__}: {error}; is the file damaged? Get it once more")


def decode(name: object, file: Path | BinaryIO, expected: str) -> Image.Image:
    """An image file in RGB, gray ones too; whatever Pillow raises becomes an error that names the file."""
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise damaged(name, expected, error) from error


def missing(folder: Path, expected: str, page: str) -> FileNotFoundError:
    return FileNotFoundError(f"{folder}: expected {expected}, got nothing of it; get the data at {page}")


def inside(folder: Path, name: str) -> Path:
    """The folder ``name`` in ``folder``, or ``folder`` if that is its own name."""
    return folder if folder.resolve().name == name else folder / name


def check_md5(name: object, content: bytes, expected: str) -> None:
    got = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if got != expected:
        raise wrong(name, f"md5 {expected}", f"{got} ({len(content):,} bytes): damaged, or another file")


def check_count(name: object, what: str, got: int, expected: int | None) -> None:
    """As many as ``expected``, or any number but 0 if that is None."""
    if got != expected if expected is not None else got == 0:
        raise wrong(name, f"{'at least 1' if expected is None else f'{expected:,}'} {what}", f"{got:,}")


def labels(name: object, values: np.ndarray, classes: int) -> Tensor:
    """As int64, if all are below ``classes``."""
    y = torch.from_numpy(values.astype(np.int64))
    if ((y < 0) | (y >= classes)).any():
        i = int(((y < 0) | (y >= classes)).nonzero()[0])
        raise wrong(name, f"labels from 0 to {classes - 1}", f"{int(y[i])} for image {i}")
    return y
