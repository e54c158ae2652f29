"""What is trained on: data sets as they are distributed, made ones in the same formats, augmentation."""

from pathlib import Path

from . import cifar, digits, idx, tiny_imagenet
from .augment import augment, normalise
from .images import Images
from .in_memory import InMemory
from .made import Encoded, in_memory
from .made_files import write
from .splits import subset, validation_split

__all__ = [
    "DATASETS",
    "Encoded",
    "Images",
    "InMemory",
    "augment",
    "digits",
    "folder_of",
    "in_memory",
    "load",
    "normalise",
    "subset",
    "validation_split",
    "write",
]

DATASETS = ("CIFAR-10", "CIFAR-100", "Fashion-MNIST", "Tiny-ImageNet")  # and poses: benchmarks.data.mpii


def folder_of(name: str, data: Path) -> Path:
    """Of a data set's files: in ``data``, or, for Fashion-MNIST, where Debian's package puts them."""
    own = data / name
    return idx.DEBIAN if name == "Fashion-MNIST" and idx.DEBIAN.is_dir() and not own.is_dir() else own


def load(name: str, folder: str | Path, train: bool, made: bool = False) -> Images:
    """One of ``DATASETS``, from the files in ``folder``; its test images unless ``train``.

    ``made``: the files are those of :func:`write`, not as distributed. ``FileNotFoundError`` or
    ``ValueError`` names the file, what was expected and where the data comes from.
    """
    if name not in DATASETS:
        raise ValueError(f"name: expected one of {', '.join(DATASETS)}, got {name!r}")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder with {name}, got no folder")
    if name == "Fashion-MNIST":
        return idx.load(folder, train, made)
    if name == "Tiny-ImageNet":
        return tiny_imagenet.load(folder, train, made)
    return cifar.load(name, folder, train, made)
