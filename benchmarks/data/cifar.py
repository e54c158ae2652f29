"""CIFAR-10 and CIFAR-100, from the binary or the python archive, packed or unpacked.

Binary files are records: one byte with the label (CIFAR-100: the label of 20, then the one of 100), then 3072
bytes, the red, the green and the blue plane, each row by row. The python archives hold pickles, and a pickle
may run any code while it is read. Those of CIFAR, written by Python 2, name three things: numpy's array, its
dtype, and the function that makes an empty array. Whatever names another one is refused. If both are there,
the binary files are read.
"""

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .images import Images, check_count, check_md5, damaged, inside, labels, missing, wrong

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
PLANES = 3 * 32 * 32


@dataclass(frozen=True)
class Archive:
    """One form in which a data set is distributed; ``train`` and ``test``: files and their images."""

    name: str
    md5: str
    folder: str
    train: dict[str, int]
    test: dict[str, int]


ARCHIVES = {
    "CIFAR-10": (
        Archive(
            "cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            "cifar-10-batches-bin",
            {f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
            {"test_batch.bin": 10_000},
        ),
        Archive(
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            "cifar-10-batches-py",
            {f"data_batch_{i}": 10_000 for i in range(1, 6)},
            {"test_batch": 10_000},
        ),
    ),
    "CIFAR-100": (
        Archive(
            "cifar-100-binary.tar.gz",
            "03b5dce01913d631647c71ecec9e9cb8",
            "cifar-100-binary",
            {"train.bin": 50_000},
            {"test.bin": 10_000},
        ),
        Archive(
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            "cifar-100-python",
            {"train": 50_000},
            {"test": 10_000},
        ),
    ),
}
CLASSES = {"CIFAR-10": 10, "CIFAR-100": 100}
MEAN = {"CIFAR-10": (0.4914, 0.4822, 0.4465), "CIFAR-100": (125.3 / 255, 123.0 / 255, 113.9 / 255)}
STD = {"CIFAR-10": (0.2470, 0.2435, 0.2616), "CIFAR-100": (63.0 / 255, 62.1 / 255, 66.7 / 255)}


def load(name: str, folder: Path, train: bool, made: bool = False) -> Images:
    """``name``: CIFAR-10 or CIFAR-100, somewhere in ``folder``: an archive as distributed, or unpacked.

    ``FileNotFoundError`` names what is missing; ``ValueError`` the file that is damaged, of another length or
    of another md5, or the pickle that is none of CIFAR's.
    """
    parts = []
    for archive in ARCHIVES[name]:
        files = archive.train if train else archive.test
        for file, path, content in _contents(archive, folder, files, made):
            read = _records if file.endswith(".bin") else _pickled
            x, y = read(path, content, CLASSES[name])
            check_count(path, "images", len(x), None if made else files[file])
            parts.append((torch.from_numpy(x.reshape(-1, 3, 32, 32)), labels(path, y, CLASSES[name])))
        if parts:
            x, y = (torch.cat(list(part)) for part in zip(*parts, strict=True))
            return Images(x, y, CLASSES[name], MEAN[name], STD[name])
    either = " or ".join(f"{a.name} (md5 {a.md5}) or its folder {a.folder}" for a in ARCHIVES[name])
    raise missing(folder, either, PAGE)


def _contents(
    archive: Archive, folder: Path, files: Iterable[str], made: bool
) -> Iterator[tuple[str, Path, bytes]]:
    """Each file with its path and bytes, or nothing if ``folder`` has neither the archive nor its folder."""
    unpacked, packed = inside(folder, archive.folder), folder / archive.name
    if unpacked.is_dir():
        for file in files:
            if not (unpacked / file).is_file():
                raise missing(unpacked, file, PAGE)
            yield file, unpacked / file, (unpacked / file).read_bytes()
    elif packed.is_file():
        content = packed.read_bytes()
        if not made:
            check_md5(packed, content, archive.md5)
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
                for file in files:
                    member = tar.extractfile(f"{archive.folder}/{file}")
                    yield file, packed / file, member.read() if member else b""
        except (tarfile.TarError, zlib.error, EOFError, OSError, KeyError) as error:
            what = f"a tar.gz archive with {', '.join(files)} in {archive.folder}"
            raise damaged(packed, what, error) from error


def _records(path: Path, content: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    before = 1 if classes == 10 else 2
    if len(content) % (before + PLANES):
        raise wrong(path, f"records of {before + PLANES} bytes", f"{len(content):,} bytes, no multiple of it")
    records = np.frombuffer(content, np.uint8).reshape(-1, before + PLANES)
    return records[:, before:].copy(), records[:, before - 1]


def _pickled(path: Path, content: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    key = b"labels" if classes == 10 else b"fine_labels"
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _Refused as error:
        raise wrong(path, "a pickle of only numpy's arrays, lists, ints and bytes", error) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise damaged(path, "a pickle", error) from error
    x, y = (batch.get(k) for k in (b"data", key)) if isinstance(batch, dict) else (None, None)
    if not (isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 2 and x.shape[1] == PLANES):
        raise wrong(path, f"b'data', a uint8 array of shape [N, {PLANES}]", _described(x))
    if not (isinstance(y, list) and len(y) == len(x) and all(type(v) is int for v in y)):
        raise wrong(path, f"{key!r}, a list of {len(x)} ints", _described(y))
    return x, np.array(y)


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {list(value.shape)}"
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:80]


class _Refused(Exception):
    pass


def _reconstruct(_subtype: type, shape: tuple[int, ...], dtype: bytes) -> np.ndarray:
    """An array that its state is then put into; not numpy's own, which is private and has moved."""
    return np.ndarray(shape, dtype.decode())


KNOWN = {  # as Python 2 and numpy 1 name them, whatever is installed
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise _Refused(f"one that names {module}.{name}: it is not CIFAR's, and was not run")
        return KNOWN[module, name]
