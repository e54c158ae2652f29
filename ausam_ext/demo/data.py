"""Handwritten digits with some wrong labels: small enough to train on in seconds, hard enough to overfit."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits  # type: ignore[import-not-found, import-untyped, unused-ignore]
from sklearn.model_selection import train_test_split  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor
from torch.utils.data import Dataset

CLASSES = 10
TRAIN_SIZE = 1280  # of the 1,797 images; a multiple of the batch size, so that every batch is full
LABEL_NOISE = 0.25


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels that are in memory already: a batch is one indexing operation, nothing to collate."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(indices, device=self.x.device)
        return self.x[rows], self.y[rows]


@dataclass
class Digits:
    """One split of the data; ``wrong`` marks the training images whose label was changed."""

    train: Images
    test: Images
    wrong: Tensor


def load(seed: int, device: torch.device | str = "cpu") -> Digits:
    """A stratified split of scikit-learn's digits; a quarter of the training labels become another class."""
    digits = load_digits()
    images = (digits.images / 16).astype("float32")
    x, x_test, y, y_test = train_test_split(
        images, digits.target, train_size=TRAIN_SIZE, stratify=digits.target, random_state=seed
    )
    x, x_test = torch.from_numpy(x).unsqueeze(1), torch.from_numpy(x_test).unsqueeze(1)
    mean, std = x.mean(), x.std()
    y, y_test = torch.from_numpy(y).long(), torch.from_numpy(y_test).long()

    generator = torch.Generator().manual_seed(seed)
    changed = torch.randperm(len(y), generator=generator)[: round(LABEL_NOISE * len(y))]
    y[changed] += torch.randint(1, CLASSES, (len(changed),), generator=generator)  # never the true class
    y %= CLASSES
    wrong = torch.zeros(len(y), dtype=torch.bool)
    wrong[changed] = True

    train = Images(((x - mean) / std).to(device), y.to(device))
    test = Images(((x_test - mean) / std).to(device), y_test.to(device))
    return Digits(train, test, wrong)
