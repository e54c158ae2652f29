"""Every method, as what it does with a batch: one registry for all that trains.

A method is made for a :class:`Task`. It says which batches there are (``batches``), trains on one
(``train``), and has what is to be saved in ``parts``. All training here goes through :func:`epoch`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Task:
    """What a method is made for.

    Attributes:
        losses: of logits and labels, ``[n]``: what is trained on; for a method that does not look at each
            sample's, their mean will do.
        size, classes: of the training set.
        settings: arguments that the method gets, in place of its defaults here.
        batches: what a method that does not choose trains on, if not whole batches of AUSAM's sampler: what
            gives a loader its batches, with ``set_epoch`` and ``indexed``.
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
    settings: dict[str, Any] = field(default_factory=dict)
    batches: Any = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.size // self.batch_size)


class Method:
    """One pass on each batch, forward and backward: SGD, or whatever the optimizer is.

    ``choice`` are arguments of the batch sampler, by default those that keep whole batches.
    """

    sam: Any = None

    def __init__(self, task: Task, **choice: Any) -> None:
        self.task, self.batches = task, task.batches
        self.parts: dict[str, Any] = {}
        if self.batches is None:
            self.adlp = ADLP(task.size, task.device)
            self.batches = AUSAMBatchSampler(
                self.adlp, task.batch_size, seed=task.seed, **{"alpha": 1.0, **choice}
            )
            self.parts |= {"batches": self.batches, "adlp": self.adlp}

    def begin(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def train(self, index: Tensor, x: Any, y: Any) -> Tensor:
        """One step of the optimizer; returns the losses at ``w``. Leaves gradients clear."""
        loss = self.step(index, x, y)
        self.task.optimizer.step()
        self.task.optimizer.zero_grad()
        self.stepped()
        return loss

    def step(self, index: Tensor, x: Any, y: Any) -> Tensor:
        """Leaves the gradient in ``.grad``, which is clear; returns the losses at ``w``."""
        return self.differentiate(x, y)

    def stepped(self) -> None:
        """The optimizer has."""

    def differentiate(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        losses = self.task.losses(self.task.model(x), y)
        total = losses if weights is None else losses * weights
        (total.mean() if total.dim() else total).backward()
        return losses.detach()


class TwoPasses(Method):
    """SAM, and those that take its second pass at times, on whole batches or AUSAM's.

    ``score``: what the choice of samples follows the change of, their ``"loss"`` or the ``"probability"`` of
    their label; None if it does not. ``weighted``: by the samples' importance.
    """

    def __init__(
        self, task: Task, sam: SAM, score: str | None = None, weighted: bool = False, **choice: Any
    ) -> None:
        super().__init__(task, **choice)
        self.sam, self.score, self.weighted = sam, score, weighted
        self.parts["sam"] = sam

    def step(self, index: Tensor, x: Any, y: Any) -> Tensor:
        weights = self.batches.weights(index).to(self.task.device) if self.weighted else None

        # Gradients are clear here, and SAM clears those of the first pass.
        loss, loss_perturbed = self.sam.backward(partial(self.differentiate, x, y, weights))
        if loss_perturbed is not None:
            self.record(index, loss, loss_perturbed)
        return loss

    def record(self, index: Tensor, loss: Tensor, loss_perturbed: Tensor) -> None:
        """The losses of both passes, for the choice."""
        if self.score == "loss":
            self.adlp.update(index, loss, loss_perturbed)
        elif self.score == "probability":
            self.adlp.update(index, torch.exp(-loss), torch.exp(-loss_perturbed))


class Choosing(Method):
    """ESAM and K-SAM, which choose among the batch."""

    def __init__(self, task: Task, sam: ESAM | KSAM) -> None:
        super().__init__(task)
        self.sam = sam
        self.parts["sam"] = sam

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        def losses(positions: Tensor | None) -> Tensor:
            chosen, labels = (x, y) if positions is None else (x[positions], y[positions])
            return self.task.losses(self.task.model(chosen), labels)

        loss: Tensor = self.sam.backward(losses)[0]
        return loss


class AlongMomentum(Method):
    """Momentum-SAM."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.sam = MomentumSAM(task.optimizer, task.rho, **task.settings)

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        with self.sam.perturbed():
            return self.differentiate(x, y)


class WithTerm(Method):
    """SAF and MESA: a term of the loss."""

    def __init__(self, task: Task, term: SAF | MESA) -> None:
        super().__init__(task)
        self.term = term
        self.parts["term"] = term

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        self.term.set_epoch(epoch)

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        logits = self.task.model(x)
        losses = self.task.losses(logits, y)
        if isinstance(self.term, SAF):
            term = self.term.penalty(index, logits)
        else:
            term = self.term.penalty(logits, x)
        (losses.mean() + term).backward()
        return losses.detach()

    def stepped(self) -> None:
        if isinstance(self.term, MESA):
            self.term.update()


class Pruned(Method):
    """InfoBatch: with SGD, or with SAM, whose ``weighted`` pass gives the scores."""

    def __init__(self, task: Task, weighted: str | None = None) -> None:
        super().__init__(task)
        self.batches = InfoBatchSampler(
            task.size, task.batch_size, epochs=task.epochs, seed=task.seed, **task.settings
        )
        self.parts = {"batches": self.batches}
        self.weighted, self.sam = weighted, None if weighted is None else SAM(task.model, task.rho)

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        weights = self.batches.weights(index).to(x.device)
        loss = self.differentiate(x, y, None if self.weighted == "second" else weights)
        scores = loss
        if self.sam is not None:
            with self.sam.perturbed():
                second = self.differentiate(x, y, weights if self.weighted == "second" else None)
            scores = second if self.weighted == "second" else loss
        self.batches.update(index, scores)
        return loss


_SAMPLER = ("alpha", "s_min", "s_max", "warmup_epochs", "full_epochs")


def _scheduled(kind: Callable[..., SAM], task: Task, **options: Any) -> Method:
    return TwoPasses(task, kind(task.model, task.rho, **{**options, **task.settings}))


def _vsam(task: Task, **options: Any) -> Method:
    settings = {"seed": task.seed, "sam_epochs": 3, **options, **task.settings}
    warmup = settings.pop("sam_epochs") * task.steps_per_epoch
    return TwoPasses(task, VSAM(task.model, task.rho, warmup_steps=warmup, **settings))


def _ausam(task: Task, **options: Any) -> Method:
    """With settings of vSAM among the rest, both methods; vSAM's ``alpha`` is ``vsam_alpha`` here."""
    settings = {**options, **task.settings}
    choice = {name: settings.pop(name) for name in _SAMPLER if name in settings}
    even = choice.get("s_min") == choice.get("s_max", 1.0)  # every half is as likely
    score, weighted = settings.pop("score", None if even else "loss"), settings.pop("weighted", False)
    sam: SAM = SAM(task.model, task.rho)
    if settings:
        warmup = settings.pop("sam_epochs", 3) * task.steps_per_epoch
        if "vsam_alpha" in settings:
            settings["alpha"] = settings.pop("vsam_alpha")
        sam = VSAM(task.model, task.rho, warmup_steps=warmup, seed=task.seed, **settings)
    return TwoPasses(task, sam, score, weighted, **choice)


def _choosing(kind: Callable[..., Any], task: Task) -> Method:
    return Choosing(task, kind(task.model, task.rho, **task.settings))


METHODS: dict[str, Callable[[Task], Method]] = {
    "SGD": Method,
    "Adam": Method,  # the optimizer makes the difference
    "SAM": partial(_scheduled, SAM),
    "SAM-5": partial(_scheduled, PeriodicSAM, every=5),
    "SAM-10": partial(_scheduled, PeriodicSAM, every=10),
    "SAM+Random": partial(_ausam, alpha=0.5, s_min=1.0, s_max=1.0, full_epochs=0),
    "LookSAM-5": partial(_scheduled, LookSAM, every=5),
    "ESAM": partial(_choosing, ESAM),
    "K-SAM": partial(_choosing, KSAM),
    "RST": lambda task: _scheduled(RandomizedSAM, task, seed=task.seed),
    "G-RST": lambda task: _scheduled(RandomizedSAM, task, seed=task.seed, weight=2.0),
    "AE-SAM": lambda task: _scheduled(AESAM, task, total_steps=task.epochs * task.steps_per_epoch),
    "Momentum-SAM": AlongMomentum,
    "SAF": lambda task: WithTerm(task, SAF(task.size, task.classes, device=task.device, **task.settings)),
    "MESA": lambda task: WithTerm(task, MESA(task.model, **task.settings)),
    "SGD+Info": Pruned,
    "SAM+Info*": partial(Pruned, weighted="first"),
    "SAM+Info": partial(Pruned, weighted="second"),
    "vSAM": _vsam,
    "vSAM-A": partial(_vsam, gamma=0.0),
    **{f"AUSAM-{alpha}": partial(_ausam, alpha=alpha) for alpha in (0.4, 0.5, 0.6, 0.7)},
    "AUSAM+vSAM": partial(_ausam, alpha=0.5, initial_rate=0.34),
}


def epoch(
    method: Method,
    loader: Iterable[Any],
    number: int,
    prepare: Callable[[Any], tuple[Any, Any]] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Trains an epoch; yields the samples of each step and their losses."""
    method.begin(number)
    for index, batch in method.batches.indexed(loader):
        x, y = batch if prepare is None else prepare(batch)
        yield index, method.train(index, x, y)
