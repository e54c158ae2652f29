"""What is trained for docs/choosing.md: data, networks and settings.

No image that settings are compared on is a test image. Digits: 517 of the 1,797 are the test set, always the
same; a validation seed holds back a quarter of the other 1,280. Fashion-MNIST: the test set is its own;
validation images are the last 10,000 training images, and training images come from the 50,000 before. Labels
that are tested on are right, and classes there are balanced, whatever is done to the training images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ausam_ext.demo.data import CLASSES, LABEL_NOISE, TRAIN_SIZE, Images
from ausam_ext.demo.training import network

from ..data import load
from ..data.idx import DEBIAN

IMBALANCE = 50  # the most frequent class has so many times as many images as the rarest

Split = tuple[Images, Images]  # to train on, and to count right answers on


@dataclass(frozen=True)
class Task:
    """A data set, a network and the settings that all methods share."""

    split: Callable[[int, bool], Split]  # of a seed; for validation or for the test
    network: Callable[[], nn.Module]
    epochs: int
    batch_size: int
    learning_rate: float
    rho: float


def digits(seed: int, validation: bool) -> Split:
    data = load_digits()
    x = torch.from_numpy((data.images / 16).astype("float32")).unsqueeze(1)
    y = torch.from_numpy(data.target).long()
    train, test = _divide(torch.arange(len(y)), y, TRAIN_SIZE, 0)
    if validation:
        train, test = _divide(train, y, TRAIN_SIZE * 3 // 4, seed)
    mean, std = x[train].mean(), x[train].std()
    return Images((x[train] - mean) / std, y[train]), Images((x[test] - mean) / std, y[test])


def wrong_labels(seed: int, validation: bool) -> Split:
    """A quarter of the training images get the label of another class."""
    train, test = digits(seed, validation)
    generator = torch.Generator().manual_seed(seed)
    changed = torch.randperm(len(train), generator=generator)[: round(LABEL_NOISE * len(train))]
    y = train.y.clone()
    y[changed] += torch.randint(1, CLASSES, (len(changed),), generator=generator)
    return Images(train.x, y % CLASSES), test


def long_tailed(seed: int, validation: bool) -> Split:
    """Class ``i`` keeps ``50 ** (-i / 9)`` of its training images."""
    train, test = digits(seed, validation)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    each = len(train) // CLASSES
    kept = [
        order[train.y[order] == i][: round(each * IMBALANCE ** (-i / (CLASSES - 1)))] for i in range(CLASSES)
    ]
    rows = torch.cat(kept)
    return Images(train.x[rows], train.y[rows]), test


def fashion(seed: int, validation: bool, size: int = 2000) -> Split:
    """``size`` training images."""
    x, y = _fashion_mnist(True)
    rows = torch.randperm(50_000, generator=torch.Generator().manual_seed(seed))[:size]
    test = (x[50_000:], y[50_000:]) if validation else _fashion_mnist(False)
    mean, std = x[rows].mean(), x[rows].std()
    return Images((x[rows] - mean) / std, y[rows]), Images((test[0] - mean) / std, test[1])


def mlp() -> nn.Module:
    """784-256-256-10, no BatchNorm."""
    hidden = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, CLASSES))


# Where `benchmarks.evidence.accuracy` begins: batch size, learning rate and rho of the demo for its network.
TASKS = {
    "digits": Task(digits, network, 20, 64, 0.05, 0.1),
    "digits, a quarter wrong": Task(wrong_labels, network, 20, 64, 0.05, 0.1),
    "digits, long-tailed": Task(long_tailed, network, 40, 64, 0.05, 0.1),
    "Fashion-MNIST": Task(fashion, mlp, 60, 128, 0.1, 0.1),
}


def available() -> list[str]:
    """Names of the tasks whose data is on this machine."""
    return [name for name in TASKS if name != "Fashion-MNIST" or DEBIAN.is_dir()]


def _divide(rows: Tensor, y: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """``size`` of the rows and the rest, each with the classes in equal shares."""
    first, second = train_test_split(
        rows.numpy(), train_size=size, stratify=y[rows].numpy(), random_state=seed
    )
    return torch.from_numpy(first), torch.from_numpy(second)


@cache
def _fashion_mnist(train: bool) -> tuple[Tensor, Tensor]:
    images = load("Fashion-MNIST", DEBIAN, train)
    return images.x.float() / 255, images.y
