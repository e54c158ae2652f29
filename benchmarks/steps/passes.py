"""Epochs that are timed, and passes without a method around them: what a method is compared with."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ausam_ext import SAM

from ..data import InMemory
from ..methods import METHODS, Method, Task, epoch

STEPS = 10  # of an epoch
CLASSES = 10

# Settings with which a few steps cost what those of a long run do on average: terms and choices from the
# first epoch on, second passes at the rate that the papers' runs have.
_FROM_THE_START = {"start_epoch": -1}
_AT_ONCE = {"full_epochs": 0, "warmup_epochs": 0}
_RATE = {"alpha": 0.0, "initial_rate": 0.34, "sam_epochs": 0}
STEADY: dict[str, dict[str, Any]] = {
    "AE-SAM": {"total_steps": 1, "lambda1": 0.0},
    "SAF": {"delay": 1, **_FROM_THE_START},
    "MESA": _FROM_THE_START,
    **{name: {"drop_last": True} for name in ("SGD+Info", "SAM+Info*", "SAM+Info")},
    **dict.fromkeys(("vSAM", "vSAM-A"), _RATE),
    **{name: _AT_ONCE for name in METHODS if name.startswith("AUSAM-")},
    "AUSAM+vSAM": {**_AT_ONCE, "sam_epochs": 0},
}


def steady(name: str) -> Callable[[Task], Method]:
    """A method as in the middle of a long run."""
    return lambda task: METHODS[name](replace(task, settings=STEADY.get(name, {})))


class Epoch:
    """Trains an epoch when called; ``steps`` and ``taken`` say how many steps each had, and second passes."""

    def __init__(
        self, make: Callable[[Task], Method], network: Callable[[], nn.Module], size: int, device: str
    ) -> None:
        torch.manual_seed(0)
        model, data = network().to(device), InMemory(STEPS * size, device)
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        task = Task(
            model,
            self.optimizer,
            lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
            len(data),
            CLASSES,
            size,
            epochs=1 << 20,
            seed=0,
            rho=0.05,
            device=torch.device(device),
        )
        self.method = make(task)
        self.loader = DataLoader(data, batch_sampler=self.method.batches, collate_fn=lambda batch: batch[:2])
        self.number = count()
        self.steps: list[int] = []
        self.taken: list[int] = []

    def __call__(self) -> None:
        steps = taken = 0
        for _ in epoch(self.method, self.loader, next(self.number)):
            steps += 1
            taken += bool(getattr(self.method.sam, "sampled", False))
        self.steps.append(steps)
        self.taken.append(taken)


class Passes(Method):
    """Nothing but passes: of a "whole" or a "half" batch, forward and backward; "weights": the same, with the
    gradients of every other tensor; "forward" without gradient, or of an "other" network.

    ``loss``: the "mean", or a "term" of distillation in addition, or of "weighted" samples. ``sam``: the
    halves by SAM.
    """

    def __init__(self, task: Task, *parts: str, loss: str = "mean", sam: bool = False) -> None:
        super().__init__(task)
        self.passes, self.loss = parts, loss
        self.around = SAM(task.model) if sam else None
        self.frozen = list(task.model.parameters())[1::2] if "weights" in parts else []
        self.other = copy.deepcopy(task.model).eval()
        self.half = torch.arange(0, task.batch_size, 2, device=task.device)
        self.past = torch.zeros(task.batch_size, CLASSES, device=task.device)
        self.ones = torch.ones(task.batch_size, device=task.device)

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        for part in self.passes:
            if part in ("forward", "other"):
                with torch.no_grad():
                    (self.other if part == "other" else self.task.model)(x)
                continue
            for p in self.frozen:
                p.requires_grad_(part != "weights")
            chosen, labels = (x[self.half], y[self.half]) if part == "half" else (x, y)
            if self.around is None:
                loss = self.once(chosen, labels)
            else:
                loss, _ = self.around.backward(lambda: self.once(chosen, labels))  # noqa: B023
        return loss

    def once(self, x: Tensor, y: Tensor) -> Tensor:
        self.task.optimizer.zero_grad()
        logits = self.task.model(x)
        losses = self.task.losses(logits, y)
        if self.loss == "weighted":
            losses = losses * self.ones
        total = losses.mean()
        if self.loss == "term":
            target, now = (F.log_softmax(z / 5, dim=1) for z in (self.past, logits))
            total = total + F.kl_div(now, target, reduction="batchmean", log_target=True)
        total.backward()
        return losses.detach()
