"""Passes without a method around them: the ideal of what does not take SGD's steps and SAM's."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from ausam_ext import SAM

from ..methods import Method, Task


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
        self.past = torch.zeros(task.batch_size, task.classes, device=task.device)
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
