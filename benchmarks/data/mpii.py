"""MPII human pose, in the json files of HRNet's authors: one person an entry, 16 joints.

The files count pixels from 1, and a person's box is given by its centre and by its side in units of 200
pixels. As in HRNet's code, the centre moves down by 15 pixels of that scale, so that less is cut off below,
the box grows by a quarter, and all coordinates then count from 0, a pixel's middle being its number.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import check_count, damaged, decode, missing, wrong

PAGE = "http://human-pose.mpi-inf.mpg.de (the images; annotations: HRNet's or MMPose's documentation)"
PERSONS = {"train": 22_246, "valid": 2_958, "trainval": 29_116}
FILES = {  # of HRNet, and of MMPose
    "train": ("annot/train.json", "annotations/mpii_train.json"),
    "valid": ("annot/valid.json", "annotations/mpii_val.json"),
    "trainval": ("annot/trainval.json", "annotations/mpii_trainval.json"),
    "truth": ("annot/gt_valid.mat", "annotations/mpii_gt_val.mat"),
}
LEGS = ("right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle")
SPINE = ("pelvis", "thorax", "neck", "head")
ARMS = ("right wrist", "right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist")
JOINTS = (*LEGS, *SPINE, *ARMS)
FLIPPED = [5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 15, 14, 13, 12, 11, 10]  # each joint's number in a mirror
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as the backbone's weights want them


class Crop(NamedTuple):
    """A person: ``image`` uint8 [3, size, size]; ``joints`` [16, 2], x and y in its pixels; ``visible`` [16].

    ``matrix`` [2, 3] takes the pixels of the image file to those of the crop. Joints that are not ``visible``
    have coordinates without a meaning.
    """

    image: Tensor
    joints: Tensor
    visible: Tensor
    matrix: Tensor

    def to_file(self, points: Tensor) -> Tensor:
        """Points [..., 2] of the crop in the pixels of the image file."""
        return (points - self.matrix[:, 2]) @ torch.linalg.inv(self.matrix[:, :2]).T


@dataclass(frozen=True)
class Persons:
    """N persons: ``files`` of their images, ``center`` [N, 2], ``side`` [N] of their square boxes in pixels,
    ``joints`` [N, 16, 2], ``visible`` [N, 16]; float32, coordinates from 0."""

    files: list[Path]
    center: Tensor
    side: Tensor
    joints: Tensor
    visible: Tensor

    def __len__(self) -> int:
        return len(self.files)

    def crop(self, i: int, size: int, *, degrees: float = 0, zoom: float = 1, flip: bool = False) -> Crop:
        """Person ``i`` in ``size`` x ``size`` pixels; what lies outside of the image is black.

        ``zoom``: the box is so many times as large. ``degrees``: what points there in the image, clockwise
        from up, points up in the crop. ``flip``: mirrored before, right and left joints then change places.
        """
        pixels = decode(self.files[i], self.files[i], "an image")
        scale, angle = size / (float(self.side[i]) * zoom), math.radians(degrees)
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        linear = np.array([[cos, sin], [-sin, cos]]) @ np.diag([-1 if flip else 1, 1])
        matrix = np.c_[linear, size / 2 - linear @ self.center[i].double().numpy()]
        inverse = np.linalg.inv(linear)
        # Pillow counts from a pixel's corner.
        origin = inverse @ (-0.5 - matrix[:, 2]) + 0.5
        coefficients = tuple(np.c_[inverse, origin].flatten().tolist())
        image = pixels.transform(
            (size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
        )
        to = torch.from_numpy(matrix).float()
        joints, visible = self.joints[i] @ to[:, :2].T + to[:, 2], self.visible[i]
        if flip:
            joints, visible = joints[FLIPPED], visible[FLIPPED]
        return Crop(torch.from_numpy(np.array(image)).permute(2, 0, 1), joints, visible, to)


class View(NamedTuple):
    """How a person is seen: arguments of :meth:`Persons.crop`."""

    degrees: float
    zoom: float
    flip: bool


def random_view(generator: torch.Generator) -> View:
    """As HRNet and SimCC train on MPII: normal numbers, 0.25 of the box and, for 6 of 10, 30 degrees."""
    zoom, angle = torch.randn(2, generator=generator).tolist()
    turn, flip = torch.rand(2, generator=generator).tolist()
    degrees = 30 * min(max(angle, -2), 2) if turn < 0.6 else 0.0
    return View(degrees, 1 + 0.25 * min(max(zoom, -1), 1), flip < 0.5)


@dataclass(frozen=True)
class Truth:
    """What PCKh compares with, of the N persons of ``valid``: ``joints`` [N, 16, 2], from 0, ``labelled``
    [N, 16] and ``head`` [N], the size of the head: 0.6 of the diagonal of its box. float32 and bool."""

    joints: Tensor
    labelled: Tensor
    head: Tensor


def load(folder: Path, part: str, made: bool = False) -> Persons:
    """``part``: train, valid or trainval, which has more persons than both. Images are read when cropped.

    ``FileNotFoundError`` names the file that is missing, be it an image; ``ValueError`` the json file that is
    damaged, incomplete or of another form.
    """
    path = _find(folder, part)
    try:
        entries = json.loads(path.read_bytes())
        files = [folder / "images" / entry["image"] for entry in entries]
        center, side, joints, visible = (
            torch.tensor([entry[key] for entry in entries], dtype=torch.float32)
            for key in ("center", "scale", "joints", "joints_vis")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, "a list of image, center, scale, joints and joints_vis", error) from error
    check_count(path, "persons", len(entries), None if made else PERSONS[part])
    shapes = [list(t.shape[1:]) for t in (center, side, joints, visible)]
    if shapes != [[2], [], [16, 2], [16]]:
        raise wrong(path, "shapes [2], [], [16, 2] and [16] of a person's entries", shapes)
    there = {file.name for file in (folder / "images").glob("*")}
    for file in files:
        if file.name not in there:
            raise missing(folder, f"images/{file.name}, which {path.name} names", PAGE)
    center[:, 1] += 15 * side
    return Persons(files, center - 1, 200 * 1.25 * side, joints - 1, visible)


def load_truth(folder: Path, made: bool = False) -> Truth:
    """From gt_valid.mat; errors as of :func:`load`."""
    from scipy.io import loadmat  # only needed here

    path = _find(folder, "truth")
    try:
        content = loadmat(path)
        missing_, joints, boxes = (content[k] for k in ("jnt_missing", "pos_gt_src", "headboxes_src"))
    except Exception as error:  # a damaged file may raise anything
        raise damaged(path, "MATLAB's arrays jnt_missing, pos_gt_src and headboxes_src", error) from error
    n = joints.shape[-1]
    shapes = [list(a.shape) for a in (missing_, joints, boxes)]
    if shapes != [[16, n], [16, 2, n], [2, 2, n]]:
        raise wrong(path, "shapes [16, N], [16, 2, N] and [2, 2, N]", shapes)
    check_count(path, "persons", n, None if made else PERSONS["valid"])
    head = 0.6 * np.linalg.norm(boxes[1].astype(float) - boxes[0], axis=0)
    return Truth(
        torch.from_numpy(joints.transpose(2, 0, 1).astype("float32")) - 1,
        torch.from_numpy(missing_.T == 0),
        torch.from_numpy(head.astype("float32")),
    )


def _find(folder: Path, what: str) -> Path:
    for name in FILES[what]:
        if (folder / name).is_file():
            return folder / name
    raise missing(folder, " or ".join(FILES[what]), PAGE)
