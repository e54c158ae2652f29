"""Fashion-MNIST: four idx files, packed by gzip or not, wherever they lie in a folder.

An idx file is a header of big-endian 32-bit numbers (0x801 and the count for labels, 0x803, the count, the
rows and the columns for images), then the bytes. MNIST's files have the same names, and gzip packs the same
bytes in many ways: so what is compared is the md5 of the unpacked bytes.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch

from .images import Images, check_count, check_md5, damaged, labels, missing, wrong

PAGE = "https://github.com/zalandoresearch/fashion-mnist, or in Debian's package dataset-fashion-mnist"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where that package puts them
MD5 = {  # unpacked
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
MEAN, STD = (0.28604,), (0.35302,)


def load(folder: Path, train: bool, made: bool = False) -> Images:
    """28x28 pixels, one channel: 60,000 to train on, 10,000 to test on.

    ``FileNotFoundError`` names the file that is missing; ``ValueError`` the one that is damaged, incomplete
    or of another md5.
    """
    part = "train" if train else "t10k"
    x = _read(folder, f"{part}-images-idx3-ubyte", (28, 28), made)
    name = f"{part}-labels-idx1-ubyte"
    y = _read(folder, name, (), made)
    check_count(folder / name, f"labels, as many as {part} images", len(y), len(x))
    return Images(torch.from_numpy(x).unsqueeze(1), labels(folder / name, y, 10), 10, MEAN, STD)


def _read(folder: Path, name: str, shape: tuple[int, ...], made: bool) -> np.ndarray:
    path, content = _content(folder, name)
    header = 4 * (2 + len(shape))
    start = np.frombuffer(content[:header].ljust(header, b"\0"), ">u4").tolist()  # short files: zeros
    magic, sizes = start[0], start[1:]
    if magic != 0x801 + len(shape) or tuple(sizes[1:]) != shape:
        layout = ", ".join(["N", *map(str, shape)])
        raise wrong(path, f"an idx header, 0x{0x801 + len(shape):x} and {layout}", f"0x{magic:x} and {sizes}")
    check_count(path, f"bytes after a header for {sizes[0]:,}", len(content) - header, int(np.prod(sizes)))
    check_count(path, "entries", sizes[0], None)
    if not made:
        check_md5(path, content, MD5[name])
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes).copy()


def _content(folder: Path, name: str) -> tuple[Path, bytes]:
    """The first file of that name in ``folder`` and below, unpacked."""
    path = next((p for p in sorted(folder.rglob(f"{name}*")) if p.name in (name, f"{name}.gz")), None)
    if path is None:
        raise missing(folder, f"{name}.gz or {name} (md5 {MD5[name]} unpacked)", PAGE)
    try:
        return path, gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise damaged(path, "a gzip file", error) from error
