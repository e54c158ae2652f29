"""Every method, as what it does with a batch: one registry for the papers' tables and whatever else trains.

A method is made for a :class:`Task`. It says which batches there are (``batches``), leaves the gradient of a
batch in ``.grad`` (``step``), and keeps what it has to save under ``parts``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler
from ausam_ext.baselines import (
    AESAM,
    ESAM,
    KSAM,
    MESA,
    SAF,
    InfoBatchSampler,
    LookSAM,
    MomentumSAM,
    PeriodicSAM,
    RandomizedSAM,
)
from ausam_ext.schedule import ScheduledSAM


@dataclass(frozen=True)
class Task:
    """What a method is made for.

    Attributes:
        losses: of logits and labels, ``[n]``, those that train.
        size, classes: of the training set.
        warmup_epochs: of AUSAM's range of weights.
        sam_epochs: at the start of vSAM, all with two passes.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Callable[[Tensor, Tensor], Tensor]
    size: int
    classes: int
    batch_size: int
    epochs: int
    seed: int
    rho: float
    device: torch.device
    warmup_epochs: int
    sam_epochs: int

    @property
    def steps(self) -> int:
        return self.epochs * -(-self.size // self.batch_size)


class Method:
    """One pass on each batch, forward and backward: SGD, or whatever the optimizer is."""

    def __init__(self, task: Task, **choice: Any) -> None:
        self.task = task
        self.adlp = ADLP(task.size, task.device)
        choice = {"alpha": 1.0, **choice}
        self.batches: Any = AUSAMBatchSampler(
            self.adlp, task.batch_size, seed=task.seed, warmup_epochs=task.warmup_epochs, **choice
        )
        self.parts: dict[str, Any] = {"batches": self.batches, "adlp": self.adlp}

    def begin(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Leaves the gradient in ``.grad``, which is clear; gives the losses at ``w``."""
        return self.differentiate(x, y)

    def stepped(self) -> None:
        """The optimizer has."""

    def differentiate(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        losses = self.task.losses(self.task.model(x), y)
        (losses if weights is None else losses * weights).mean().backward()
        return losses.detach()


class TwoPasses(Method):
    """SAM, and those that take its second pass at times; ``choice`` are AUSAM's arguments."""

    def __init__(self, task: Task, make: Callable[[Task], SAM], **choice: Any) -> None:
        super().__init__(task, **choice)
        self.sam = make(task)
        self.parts["sam"] = self.sam
        self.scored = "alpha" in choice and choice.get("s_min") != choice.get("s_max", 1.0)

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        def closure() -> Tensor:
            self.task.optimizer.zero_grad()
            return self.differentiate(x, y)

        loss, loss_perturbed = self.sam.backward(closure)
        if self.scored and loss_perturbed is not None:
            self.adlp.update(index, loss, loss_perturbed)
        return loss


class Choosing(Method):
    """ESAM and K-SAM, which choose among the batch."""

    def __init__(self, task: Task, make: Callable[[Task], Any]) -> None:
        super().__init__(task)
        self.sam = make(task)
        self.parts["sam"] = self.sam

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        def losses(positions: Tensor | None) -> Tensor:
            chosen, labels = (x, y) if positions is None else (x[positions], y[positions])
            return self.task.losses(self.task.model(chosen), labels)

        return self.sam.backward(losses)[0]


class AlongMomentum(Method):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.sam = MomentumSAM(task.optimizer, task.rho)

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        with self.sam.perturbed():
            return self.differentiate(x, y)


class WithTerm(Method):
    """SAF and MESA: a term of the loss."""

    def __init__(self, task: Task, make: Callable[[Task], Any]) -> None:
        super().__init__(task)
        self.term = make(task)
        self.parts["term"] = self.term

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        self.term.set_epoch(epoch)

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        logits = self.task.model(x)
        losses = self.task.losses(logits, y)
        of = (index, logits) if isinstance(self.term, SAF) else (logits, x)
        (losses.mean() + self.term.penalty(*of)).backward()
        return losses.detach()

    def stepped(self) -> None:
        if isinstance(self.term, MESA):
            self.term.update()


class Pruned(Method):
    """InfoBatch: with SGD, or with SAM, whose ``weighted`` pass has the weights and gives the scores."""

    def __init__(self, task: Task, weighted: str | None = None) -> None:
        super().__init__(task)
        self.batches = InfoBatchSampler(task.size, task.batch_size, epochs=task.epochs, seed=task.seed)
        self.parts = {"batches": self.batches}
        self.weighted, self.sam = weighted, None if weighted is None else SAM(task.model, task.rho)

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        weights = self.batches.weights(index).to(x.device)
        first = self.differentiate(x, y, None if self.weighted == "second" else weights)
        scores = first
        if self.sam is not None:
            with self.sam.perturbed():
                second = self.differentiate(x, y, weights if self.weighted == "second" else None)
            scores = second if self.weighted == "second" else first
        self.batches.update(index, scores)
        return first


def _vsam(task: Task, **options: Any) -> VSAM:
    warmup = task.sam_epochs * -(-task.size // task.batch_size)
    return VSAM(task.model, task.rho, warmup_steps=warmup, seed=task.seed, **options)


def two_passes(make: Callable[..., SAM] = SAM, **options: Any) -> Callable[[Task], Method]:
    return partial(TwoPasses, make=lambda task: make(task.model, task.rho, **options))


def ausam(alpha: float, **options: Any) -> Callable[[Task], Method]:
    return partial(TwoPasses, make=lambda task: SAM(task.model, task.rho), alpha=alpha, **options)


def vsam(choice: dict[str, Any] | None = None, **options: Any) -> Callable[[Task], Method]:
    return partial(TwoPasses, make=lambda task: _vsam(task, **options), **(choice or {}))


def choosing(make: Callable[..., Any], **options: Any) -> Callable[[Task], Method]:
    return partial(Choosing, make=lambda task: make(task.model, task.rho, **options))


METHODS: dict[str, Callable[..., Method]] = {
    "SGD": Method,
    "Adam": Method,  # the optimizer makes the difference
    "SAM": two_passes(),
    "SAM-5": two_passes(PeriodicSAM, every=5),
    "SAM-10": two_passes(PeriodicSAM, every=10),
    "SAM+Random": ausam(0.5, s_min=1.0, s_max=1.0, full_epochs=0),
    "LookSAM-5": two_passes(LookSAM, every=5, alpha=0.7),
    "LookSAM-5, alpha 0.1": two_passes(LookSAM, every=5, alpha=0.1),
    "ESAM": choosing(ESAM),
    "K-SAM": choosing(KSAM),
    "K-SAM, a third": choosing(KSAM, k_ratio=1 / 3),
    "RST": lambda task: TwoPasses(task, lambda t: RandomizedSAM(t.model, t.rho, seed=t.seed)),
    "G-RST": lambda task: TwoPasses(task, lambda t: RandomizedSAM(t.model, t.rho, weight=2.0, seed=t.seed)),
    "AE-SAM": lambda task: TwoPasses(task, lambda t: AESAM(t.model, t.rho, total_steps=t.steps)),
    "Momentum-SAM": AlongMomentum,
    "SAF": partial(WithTerm, make=lambda t: SAF(t.size, t.classes, device=t.device)),
    "MESA": partial(WithTerm, make=lambda t: MESA(t.model)),
    "SGD+Info": Pruned,
    "SAM+Info*": partial(Pruned, weighted="first"),
    "SAM+Info": partial(Pruned, weighted="second"),
    "vSAM": vsam(),
    "vSAM-A": vsam(gamma=0.0),
    "AUSAM+vSAM": vsam({"alpha": 0.5}),
    **{f"AUSAM-{alpha}": ausam(alpha) for alpha in (0.4, 0.5, 0.6, 0.7)},
}


def sampled(method: Method) -> bool | None:
    """Whether the last step took a second pass; None if the method does not choose that."""
    sam = getattr(method, "sam", None)
    return sam.sampled if isinstance(sam, ScheduledSAM) else None
