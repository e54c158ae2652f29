"""Small files in the formats of the real data sets, so that all of the suite runs without the data.

A class's images share a mean image, so that a network learns them within an epoch or two. The same seed
writes the same bytes.
"""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from . import cifar, mpii, python2_pickle, tiny_imagenet
from .made import smooth

SAMPLES = {"CIFAR-10": 500, "CIFAR-100": 500, "Fashion-MNIST": 500, "Tiny-ImageNet": 12, "MPII": 8}

Pictures = tuple[np.ndarray, np.ndarray]  # uint8 [N, C, size, size] and int64 [N]


def write(
    name: str, folder: Path, *, samples: int | None = None, seed: int = 0, python: bool = False
) -> None:
    """Writes training and test images into ``folder``, as they are when an archive is unpacked there.

    ``name``: a key of ``SAMPLES``, which has how many to train on unless ``samples`` says it; the test set
    has a quarter of that (MPII: as many). ``python``: CIFAR's pickles instead of its binary files. Loaders
    take them with ``made=True``.
    """
    count = SAMPLES[name] if samples is None else samples
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    if name == "MPII":
        _mpii(folder, count, np.random.default_rng(seed))
    elif name == "Tiny-ImageNet":
        _tiny_imagenet(folder, *_pictures(count, 3, 3, 64, generator))
    elif name == "Fashion-MNIST":
        _idx(folder, *_pictures(count, 10, 1, 28, generator))
    else:
        train, test = _pictures(count, cifar.CLASSES[name], 3, 32, generator)
        _cifar(folder, cifar.ARCHIVES[name][python], train, test)


def _pictures(
    samples: int, classes: int, channels: int, size: int, generator: torch.Generator
) -> tuple[Pictures, Pictures]:
    """To train and to test on; one class after the other, and round again."""
    number = torch.cat([torch.arange(samples), torch.arange(samples // 4)]) % classes
    x = 130 * smooth(classes, channels, size, generator)[number]
    x += 100 * smooth(len(number), channels, size, generator) + 25 * torch.rand(x.shape, generator=generator)
    pixels, y = x.clamp(0, 255).byte().numpy(), number.numpy()
    return (pixels[:samples], y[:samples]), (pixels[samples:], y[samples:])


def _cifar(folder: Path, archive: cifar.Archive, train: Pictures, test: Pictures) -> None:
    (folder / archive.folder).mkdir()
    for files, (x, y) in ((archive.train, train), (archive.test, test)):
        flat = x.reshape(len(x), -1)
        for i, file in enumerate(files):
            rows = slice(i * len(y) // len(files), (i + 1) * len(y) // len(files))
            content = (_records if file.endswith(".bin") else _pickled)(flat[rows], y[rows], archive)
            (folder / archive.folder / file).write_bytes(content)


def _records(x: np.ndarray, y: np.ndarray, archive: cifar.Archive) -> bytes:
    fine = y.astype(np.uint8)[:, None]
    before = [fine] if "cifar-10-" in archive.folder else [fine // 5, fine]  # coarse, fine
    return np.concatenate([*before, x], axis=1).tobytes()


def _pickled(x: np.ndarray, y: np.ndarray, archive: cifar.Archive) -> bytes:
    named = {"batch_label": "made", "filenames": [f"made_{i}.png" for i in range(len(y))]}
    if "cifar-10-" in archive.folder:
        return python2_pickle.dumps({"data": x, "labels": y.tolist(), **named})
    fine = {"fine_labels": y.tolist(), "coarse_labels": (y // 5).tolist()}
    return python2_pickle.dumps({"data": x, **fine, **named})


def _idx(folder: Path, train: Pictures, test: Pictures) -> None:
    for part, (x, y) in (("train", train), ("t10k", test)):
        for name, header, values in (
            ("images-idx3", [0x803, len(x), 28, 28], x),
            ("labels-idx1", [0x801, len(y)], y),
        ):
            content = np.array(header, ">u4").tobytes() + values.astype(np.uint8).tobytes()
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content, mtime=0))


def _tiny_imagenet(folder: Path, train: Pictures, test: Pictures) -> None:
    """The first image of each part is gray, and wnids.txt is not sorted: as in the real one."""
    root = folder / tiny_imagenet.FOLDER
    wnids = ["n01000001", "n02000002", "n03000003"]
    (root / "val/images").mkdir(parents=True)
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids[1:] + wnids[:1]))
    (root / "words.txt").write_text("".join(f"{wnid}\tmade\n" for wnid in wnids))
    for i, (x, y) in enumerate(zip(*train, strict=True)):
        images, file = root / f"train/{wnids[y]}/images", f"{wnids[y]}_{i // 3}.JPEG"
        images.mkdir(parents=True, exist_ok=True)
        (images / file).write_bytes(_jpeg(x, gray=i == 0))
        with (images.parent / f"{wnids[y]}_boxes.txt").open("a") as boxes:
            boxes.write(f"{file}\t0\t0\t63\t63\n")
    lines = []
    for i, (x, y) in enumerate(zip(*test, strict=True)):
        (root / f"val/images/val_{i}.JPEG").write_bytes(_jpeg(x, gray=i == 0))
        lines.append(f"val_{i}.JPEG\t{wnids[y]}\t0\t0\t63\t63\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))


def _jpeg(x: np.ndarray, gray: bool) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(x.transpose(1, 2, 0))
    (image.convert("L") if gray else image).save(file, "JPEG", quality=95)
    return file.getvalue()


# Joints of a person of height 1 whose hips are at 0; y points down.
LEGS = [(-0.15, 0.5), (-0.12, 0.25), (-0.08, 0), (0.08, 0), (0.12, 0.25), (0.15, 0.5)]
SPINE = [(0, 0), (0, -0.3), (0, -0.35), (0, -0.5)]
ARMS = [(-0.3, 0), (-0.2, -0.15), (-0.1, -0.3), (0.1, -0.3), (0.2, -0.15), (0.3, 0)]
STANDING = np.array([*LEGS, *SPINE, *ARMS])
LIMBS = [(0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (10, 11), (11, 12), (12, 7)]
LIMBS += [(7, 13), (13, 14), (14, 15)]


def _mpii(folder: Path, samples: int, random: np.random.Generator) -> None:
    """Stick figures with a dot at each joint, in a colour of its own; one joint of each is not labelled."""
    from scipy.io import savemat  # only needed here

    (folder / "annot").mkdir()
    (folder / "images").mkdir()
    for part in ("train", "valid"):
        entries, joints = [], []
        for i in range(samples):
            height = random.uniform(90, 130)
            center = np.array([100, 90]) + random.uniform(-10, 10, 2)
            where = center + height * (STANDING + random.normal(0, 0.02, (16, 2)))
            _draw(where).save(folder / f"images/{part}_{i}.jpg", quality=95, subsampling=0)
            visible = [int(j != i % 16) for j in range(16)]
            where = np.where(np.array(visible)[:, None] == 1, where + 1, -1.0)  # counted from 1
            joints.append(where)
            entries.append(
                {
                    "image": f"{part}_{i}.jpg",
                    "center": (center + 1).tolist(),
                    "scale": height / 200,
                    "joints": where.tolist(),
                    "joints_vis": visible,
                }
            )
        (folder / f"annot/{part}.json").write_text(json.dumps(entries))
    corner = np.stack([p[8] for p in joints]).T  # of the head's box, [2, N]
    truth = {
        "dataset_joints": np.array([mpii.JOINTS], dtype=object),
        "jnt_missing": np.array([1 - np.array(e["joints_vis"]) for e in entries]).T,
        "pos_gt_src": np.stack(joints, axis=-1),
        "headboxes_src": np.stack([corner, corner + np.array([[30], [40]])]),
    }
    file = io.BytesIO()
    savemat(file, truth, do_compression=True)
    header = b"MATLAB 5.0 MAT-file".ljust(116)  # instead of one with the time
    (folder / "annot/gt_valid.mat").write_bytes(header + file.getvalue()[116:])


def _draw(joints: np.ndarray) -> Image.Image:
    image = Image.new("RGB", (200, 180), (60, 60, 60))
    pen = ImageDraw.Draw(image)
    for a, b in LIMBS:
        pen.line([*joints[a], *joints[b]], fill=(128, 128, 128), width=3)
    for (x, y), color in zip(joints, COLORS, strict=True):
        pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=color)
    return image


COLORS = [(85 * (j % 4), 85 * (j // 4), 255 - 85 * (j % 4)) for j in range(16)]
