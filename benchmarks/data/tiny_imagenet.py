"""Tiny-ImageNet, from its zip file or unpacked: 200 classes, images of 64x64 pixels, some of them gray.

Two traps lie in the files as they are distributed. The validation images are in one folder, and only
``val_annotations.txt`` says of which class each is. And ``wnids.txt`` is not sorted: here a class's number is
its place among the sorted names, in both parts. The images of ``test`` have no labels; those of ``val`` are
tested on, as in the papers.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .images import Images, check_count, check_md5, damaged, decode, inside, missing, wrong

PAGE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
FOLDER, ZIP, MD5 = "tiny-imagenet-200", "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"
CLASSES, EACH, VALIDATION, SIZE = 200, 500, 10_000, 64
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)

Read = Callable[[str], bytes]
Labelled = list[tuple[str, int]]  # files and their classes


def load(folder: Path, train: bool, made: bool = False) -> Images:
    """All images of a part, decoded: 1.23 GB of memory for the 100,000 to train on, 0.12 for val's 10,000.

    ``FileNotFoundError`` names the file that is missing; ``ValueError`` the one that is damaged or not as
    expected. A zip file's md5 is compared; unpacked, every file has to be there and to be an image.
    """
    place, names, read = _open(folder, made)

    def content(name: str) -> bytes:
        if name not in names:
            raise missing(place, name, PAGE)
        try:
            return read(name)
        except (zipfile.BadZipFile, zlib.error, OSError) as error:
            raise damaged(place / name, "a file that can be read", error) from error

    wnids = sorted(content("wnids.txt").decode().split())
    check_count(place / "wnids.txt", "classes", len(wnids), None if made else CLASSES)
    files = _training(place, names, wnids, made) if train else _validation(place, content, wnids, made)
    x = torch.empty(len(files), 3, SIZE, SIZE, dtype=torch.uint8)
    for i, (name, _) in enumerate(files):
        x[i] = torch.from_numpy(_decode(place / name, content(name))).permute(2, 0, 1)
    return Images(x, torch.tensor([label for _, label in files]), len(wnids), MEAN, STD)


def _open(folder: Path, made: bool) -> tuple[Path, set[str], Read]:
    """Where the files are, their names in there, and what reads one."""
    unpacked, packed = inside(folder, FOLDER), folder / ZIP
    if unpacked.is_dir():
        names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.*")}
        return unpacked, names, lambda name: (unpacked / name).read_bytes()
    if not packed.is_file():
        raise missing(folder, f"{ZIP} (md5 {MD5}) or its folder {FOLDER}", PAGE)
    whole = packed.read_bytes()
    if not made:
        check_md5(packed, whole, MD5)
    try:
        archive = zipfile.ZipFile(io.BytesIO(whole))
    except zipfile.BadZipFile as error:
        raise damaged(packed, "a zip file", error) from error
    names = {name.removeprefix(f"{FOLDER}/") for name in archive.namelist()}
    return packed, names, lambda name: archive.read(f"{FOLDER}/{name}")


def _training(place: Path, names: set[str], wnids: list[str], made: bool) -> Labelled:
    """A class's images in the order of their numbers, from 0 on and without a gap."""
    count = dict.fromkeys(wnids, 0)
    for name in names:
        match = re.fullmatch(r"train/(\w+)/images/\1_\d+\.JPEG", name)
        if match and match[1] in count:
            count[match[1]] += 1
    files = []
    for label, wnid in enumerate(wnids):
        for i in range(max(1, count[wnid]) if made else EACH):
            name = f"train/{wnid}/images/{wnid}_{i}.JPEG"
            if name not in names:
                raise missing(place, name, PAGE)
            files.append((name, label))
    return files


def _validation(place: Path, content: Read, wnids: list[str], made: bool) -> Labelled:
    annotations = "val/val_annotations.txt"
    number = {wnid: i for i, wnid in enumerate(wnids)}
    files = []
    for i, line in enumerate(content(annotations).decode().splitlines(), 1):
        fields = line.split("\t")
        if len(fields) != 6 or fields[1] not in number:
            what = "a file, a class of wnids.txt and four numbers, tabs between them"
            raise wrong(f"{place / annotations}, line {i}", what, repr(line))
        files.append((f"val/images/{fields[0]}", number[fields[1]]))
    check_count(place / annotations, "images", len(files), None if made else VALIDATION)
    return files


def _decode(path: Path, content: bytes) -> np.ndarray:
    """``[64, 64, 3]``; a gray image three times the same."""
    what = f"an image of {SIZE}x{SIZE} pixels"
    pixels = np.array(decode(path, io.BytesIO(content), what))
    if pixels.shape != (SIZE, SIZE, 3):
        raise wrong(path, what, f"{pixels.shape[1]}x{pixels.shape[0]}")
    return pixels
