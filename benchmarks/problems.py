"""What a training is about: its data, network, loss, augmentation, schedule and score."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .data import Images, InMemory, augment, digits, folder_of, load, mpii, normalise, subset
from .job import Job
from .networks import ANY_SIZE, NETWORKS
from .pose.backbones import HRNetW32, small_backbone
from .pose.pckh import pckh
from .pose.simcc import SimCC, Target, decode, losses, one_hot, probabilities

MOMENTUM = 0.9


class Problem(Protocol):
    """Attributes: ``dataset`` gives what :meth:`batch` takes; ``classes`` are of SAF's table."""

    dataset: Any
    classes: int
    workers: int

    def network(self) -> nn.Module: ...
    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer: ...
    def losses(self, output: Any, target: Any) -> Tensor: ...
    def batch(self, loaded: Any, generator: torch.Generator) -> tuple[Any, Any]: ...
    def factor(self, done: float) -> float:
        """Of the learning rate, when that share of the run is done."""
        ...

    def score(self, model: nn.Module) -> float:
        """Of test data, in percent; the model is in evaluation mode."""
        ...


class Classification:
    """Images of one label each: cross entropy, and a cosine to 0 by fractions of epochs.

    Images are augmented in each step, or normalised once if there is no augmentation.
    """

    workers = 0

    def __init__(self, job: Job, data: Path, device: torch.device) -> None:
        self.job, self.device = job, device
        self.train, self.test = _images(job, data)
        self.classes = self.train.classes
        x = self.train.x.to(device)
        if job.augmentation is None:
            x = normalise(x, self.train.mean, self.train.std)
        self.dataset = InMemory(x, self.train.y.to(device))

    def network(self) -> nn.Module:
        _, channels, size, _ = self.train.x.shape
        small = self.job.small
        if self.job.network in ANY_SIZE:
            small = {"size": size, **small}
        return NETWORKS[self.job.network](self.classes, channels=channels, **small)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        job = self.job
        return torch.optim.SGD(model.parameters(), job.learning_rate, MOMENTUM, weight_decay=job.weight_decay)

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none", label_smoothing=self.job.smoothing)

    def batch(
        self, loaded: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        x, y, _ = loaded
        if self.job.augmentation is None:
            return x, y
        return augment(x, self.train.mean, self.train.std, generator, **self.job.augmentation), y

    def factor(self, done: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * done))

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        right = 0
        for x, y in zip(self.test.x.split(500), self.test.y.split(500), strict=True):
            output = model(normalise(x.to(self.device), self.train.mean, self.train.std))
            right += int((output.argmax(1).cpu() == y).sum())
        return 100 * right / len(self.test)


def _images(job: Job, data: Path) -> tuple[Images, Images]:
    """To train on and to score on."""
    if job.dataset in digits.KINDS:
        return digits.load(job.dataset, job.seed, job.validation)
    return subset(
        *(_whole(job.dataset, data, train, job.made) for train in (True, False)),
        size=job.size,
        validation=job.validation,
        seed=job.seed,
    )


@cache
def _whole(dataset: str, data: Path, train: bool, made: bool) -> Images:
    return load(dataset, folder_of(dataset, data), train, made)


Person = tuple[Tensor, Tensor, Tensor]  # image, joints, which of them are visible


@dataclass
class Crops(Dataset[Person]):
    """Persons as one sees them in an epoch: other views in another, the same ones whoever loads them."""

    persons: mpii.Persons
    size: int
    seed: int
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.persons)

    def __getitem__(self, i: int) -> Person:
        generator = torch.Generator().manual_seed(((self.seed << 20) + self.epoch << 20) + i)
        crop = self.persons.crop(i, self.size, **mpii.random_view(generator)._asdict())
        return crop.image, crop.joints, crop.visible


class Poses:
    """MPII with SimCC: one-hot targets, Adam, a tenth of the learning rate at 170 and 200 of 210 epochs; the
    score is PCKh@0.5 by the flip test."""

    classes = 2  # SAF and MESA have no part in this table
    milestones = (170 / 210, 200 / 210)

    def __init__(self, job: Job, data: Path, device: torch.device) -> None:
        self.job, self.device = job, device
        folder = data / job.dataset
        self.size = 64 if job.made else 256
        self.workers = 0 if job.made else 8
        self.dataset = Crops(mpii.load(folder, "train", job.made), self.size, job.seed)
        self.valid = mpii.load(folder, "valid", job.made)
        self.truth = mpii.load_truth(folder, job.made)

    def network(self) -> nn.Module:
        backbone: nn.Module = small_backbone() if self.job.made else HRNetW32(pretrained=True)
        return SimCC(backbone, 16 if self.job.made else HRNetW32.channels, (self.size, self.size))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), self.job.learning_rate)

    def losses(self, output: tuple[Tensor, Tensor], target: Target) -> Tensor:
        return losses(output, target)

    def batch(self, loaded: Person, generator: torch.Generator) -> tuple[Tensor, Target]:
        image, joints, visible = (t.to(self.device) for t in loaded)
        return normalise(image, mpii.MEAN, mpii.STD), one_hot(joints, visible, (self.size, self.size))

    def factor(self, done: float) -> float:
        return 0.1 ** sum(done >= milestone for milestone in self.milestones)

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        found = []
        crops = DataLoader(range(len(self.valid)), 32, collate_fn=self._crops)  # type: ignore[arg-type]
        for of_batch in crops:
            x = normalise(torch.stack([crop.image for crop in of_batch]).to(self.device), mpii.MEAN, mpii.STD)
            places = decode(*probabilities(model, x)).cpu()
            found += [crop.to_file(p) for crop, p in zip(of_batch, places, strict=True)]
        truth = self.truth
        return pckh(torch.stack(found), truth.joints, truth.labelled, truth.head)["mean"]

    def _crops(self, rows: list[int]) -> list[mpii.Crop]:
        return [self.valid.crop(i, self.size) for i in rows]


def problem(job: Job, data: Path, device: torch.device) -> Problem:
    return (Poses if job.dataset == "MPII" else Classification)(job, data, device)
