"""Epochs of steps that are timed, and passes without a method around them: what a method is compared with."""

import copy
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from ausam_ext import SAM

from .data import InMemory

STEPS = 10  # of an epoch
CLASSES = 10


class Epoch:
    """Trains an epoch when called; ``steps`` and ``taken`` say how many steps each had, and second passes."""

    def __init__(self, method: "Method", network: Callable[[], nn.Module], size: int, device: str) -> None:
        torch.manual_seed(0)
        self.size, self.device = size, device
        self.model = network().to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        self.data = InMemory(STEPS * size, device)
        self.number = count()
        self.load = lambda: DataLoader(
            self.data, size, sampler=RandomSampler(self.data), collate_fn=lambda batch: batch
        )
        self.steps: list[int] = []
        self.taken: list[int] = []
        self.step = method(self)

    def __call__(self) -> None:
        steps = taken = 0
        for x, y, index in self.load():
            taken += bool(self.step(x, y, index))
            self.optimizer.step()
            self.optimizer.zero_grad()
            steps += 1
        self.steps.append(steps)
        self.taken.append(taken)


Step = Callable[[Tensor, Tensor, Tensor], Any]  # of images, labels and index; true after two passes
Method = Callable[[Epoch], Step]


def plain(epoch: Epoch) -> Step:
    return lambda x, y, index: F.cross_entropy(epoch.model(x), y).backward()


def passes(*parts: str, loss: str = "mean", sam: bool = False) -> Method:
    """Nothing but passes: of a "whole" or a "half" batch, forward and backward; "weights": the same, with the
    gradients of every other tensor; "forward" without gradient, or of an "other" network.

    ``loss``: "mean", "term" of distillation in addition, or "weighted" samples. ``sam``: the halves by SAM.
    """

    def method(epoch: Epoch) -> Step:
        frozen = list(epoch.model.parameters())[1::2] if "weights" in parts else []
        other = copy.deepcopy(epoch.model).eval()
        half = torch.arange(0, epoch.size, 2, device=epoch.device)
        past = torch.zeros(epoch.size, CLASSES, device=epoch.device)
        weights = torch.ones(epoch.size, device=epoch.device)
        method_on_half = SAM(epoch.model) if sam else None

        def differentiate(x: Tensor, y: Tensor) -> Tensor:
            epoch.optimizer.zero_grad()
            logits = epoch.model(x)
            if loss == "weighted":
                total = (F.cross_entropy(logits, y, reduction="none") * weights).mean()
            else:
                total = F.cross_entropy(logits, y)
            if loss == "term":
                target, now = (F.log_softmax(z / 5, dim=1) for z in (past, logits))
                total = total + F.kl_div(now, target, reduction="batchmean", log_target=True)
            total.backward()
            return total

        def step(x: Tensor, y: Tensor, index: Tensor) -> None:
            for part in parts:
                if part in ("forward", "other"):
                    with torch.no_grad():
                        (other if part == "other" else epoch.model)(x)
                    continue
                for p in frozen:
                    p.requires_grad_(part != "weights")
                chosen, labels = (x[half], y[half]) if part == "half" else (x, y)
                if method_on_half is None:
                    differentiate(chosen, labels)
                else:
                    method_on_half.backward(lambda: differentiate(chosen, labels))  # noqa: B023

        return step

    return method
