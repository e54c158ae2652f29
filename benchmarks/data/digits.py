"""Handwritten digits that scikit-learn brings along, 8 by 8: as they are, with wrong labels, or long-tailed.

517 of the 1,797 are the test set, always the same; a validation seed holds back a quarter of the other 1,280.
Labels that are tested on are right, and classes there are balanced, whatever is done to the training images.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .images import Images
from .splits import validation_split

PLAIN = "digits"
WRONG = "digits, a quarter wrong"
LONG_TAILED = "digits, long-tailed"
KINDS = (PLAIN, WRONG, LONG_TAILED)

CLASSES = 10
TEST_SIZE = 517  # 1,280 are left: whole batches of 64
WRONG_SHARE = 0.25
IMBALANCE = 50  # the most frequent class has so many times as many images as the rarest


def load(kind: str, seed: int, validation: bool = False) -> tuple[Images, Images]:
    """To train on, and to score on. ``seed`` draws wrong labels, the tail and validation images."""
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    x, y = _all()
    train, test = validation_split(y, TEST_SIZE, 0)
    if validation:
        rows, held_back = validation_split(y[train], len(train) // 4, seed)
        train, test = train[rows], train[held_back]
    pixels = x[train].float() / 255
    mean, std = (pixels.mean().item(),), (pixels.std().item(),)
    train_set, test_set = (Images(x[rows], y[rows], CLASSES, mean, std) for rows in (train, test))
    if kind == WRONG:
        wrong = wrong_labels(len(train), seed)
        train_set = replace(train_set, y=torch.where(wrong > 0, (train_set.y + wrong) % CLASSES, train_set.y))
    if kind == LONG_TAILED:
        rows = _tail(train_set.y, seed)
        train_set = replace(train_set, x=train_set.x[rows], y=train_set.y[rows])
    return train_set, test_set


def wrong_labels(size: int, seed: int) -> Tensor:
    """What is added to each label, modulo 10: 0 to three quarters of them, 1 to 9 to the others."""
    generator = torch.Generator().manual_seed(seed)
    changed = torch.randperm(size, generator=generator)[: round(WRONG_SHARE * size)]
    added = torch.zeros(size, dtype=torch.int64)
    added[changed] = torch.randint(1, CLASSES, (len(changed),), generator=generator)
    return added


def _tail(y: Tensor, seed: int) -> Tensor:
    """Rows of which class ``i`` has ``50 ** (-i / 9)`` times as many as class 0."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    each = len(y) // CLASSES
    sizes = [round(each * IMBALANCE ** (-i / (CLASSES - 1))) for i in range(CLASSES)]
    return torch.cat([order[y[order] == i][:size] for i, size in enumerate(sizes)])


def _all() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # if no digits are used, scikit-learn need not be there

    data = load_digits()
    x = torch.from_numpy(data.images).to(torch.uint8) * 15  # from 0 to 16, to bytes
    return x.unsqueeze(1), torch.from_numpy(data.target).long()
