"""The methods whose accuracy is compared, and one training loop for all of them."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler, ops
from ausam_ext.demo.data import Images
from ausam_ext.demo.training import MOMENTUM, VSAM_WARMUP_EPOCHS, WEIGHT_DECAY

from .tasks import Task

RAMP = 0.15  # of the epochs until s_max is reached, as the papers' 30 of 200
FLOOR = 0.1  # of the mean score: the least that a sample counts for in a choice in proportion to scores


@dataclass(frozen=True)
class Variant:
    """What sets a method apart.

    Attributes:
        sampler: arguments of ``AUSAMBatchSampler``.
        score: what DLP is the change of: the ``"loss"``, the ``"probability"`` of the label, or nothing.
        weighted: whether the loss is weighted, by the normalised weights.
        proportional: the choice is in proportion to the scores, not to Eq. 8's.
        vsam: arguments of ``VSAM``; None for another method.
        sam: whether there is a second pass at all.
    """

    sampler: dict[str, Any] = field(default_factory=lambda: {"alpha": 1.0})
    score: str | None = None
    weighted: bool = False
    proportional: bool = False
    vsam: dict[str, Any] | None = None
    sam: bool = True


HALF = {"alpha": 0.5}
FIXED_RATE = {"alpha": 0.0, "initial_rate": 0.34}  # amid the averages of vSAM's Table 3

VARIANTS = {
    "SGD": Variant(sam=False),
    "SAM": Variant(),
    # Equal weights: every half is as likely. The first epoch is whole, as AUSAM's.
    "Random half": Variant({"alpha": 0.5, "s_min": 1.0}),
    "AUSAM": Variant(HALF, "loss"),
    "AUSAM, weighted": Variant(HALF, "loss", weighted=True),
    "AUSAM, probability": Variant(HALF, "probability"),
    "AUSAM, probability, weighted": Variant(HALF, "probability", weighted=True),
    "AUSAM, proportional, weighted": Variant(score="loss", weighted=True, proportional=True),
    "vSAM, rate 0.34": Variant(vsam=FIXED_RATE),
    "vSAM, default": Variant(vsam={}),
    "AUSAM, probability + vSAM, rate 0.34": Variant(HALF, "probability", vsam=FIXED_RATE),
}


def train(
    variant: Variant, task: Task, train_set: Images, seed: int, epochs: float = 1.0
) -> tuple[torch.nn.Module, ADLP, int]:
    """Trains as a user would, for a share of the task's epochs.

    Returns:
        The network, the table, and how many samples went through forward and backward.
    """
    torch.manual_seed(seed)
    model = task.network()
    optimizer = torch.optim.SGD(model.parameters(), task.learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.epochs)

    adlp = ADLP(len(train_set))
    ramp = max(1, round(RAMP * task.epochs))
    batches = AUSAMBatchSampler(adlp, task.batch_size, **variant.sampler, warmup_epochs=ramp, seed=seed)
    loader = DataLoader(train_set, batch_sampler=batches, collate_fn=lambda batch: batch)
    noise = torch.Generator().manual_seed(seed)
    sam = SAM(model, task.rho)
    if variant.vsam is not None:
        warmup = VSAM_WARMUP_EPOCHS * len(batches)
        sam = VSAM(model, task.rho, warmup_steps=warmup, seed=seed, **variant.vsam)

    def forward_backward(x: Tensor, y: Tensor, weights: Tensor | float) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y, reduction="none")
        (loss * weights).mean().backward()
        return loss

    samples = 0
    for epoch in range(round(epochs * task.epochs)):
        batches.set_epoch(epoch)
        for index, (x, y) in batches.indexed(loader):
            weights: Tensor | float = 1.0
            if variant.proportional and epoch > 0:
                keep, weights = proportional(adlp.mean(index), max(2, len(index) // 2), noise)
                index, x, y = index[keep], x[keep], y[keep]
            elif variant.weighted:
                weights = batches.weights(index)
            closure = partial(forward_backward, x, y, weights)
            loss, loss_perturbed = sam.backward(closure) if variant.sam else (closure(), None)
            if loss_perturbed is not None:
                if variant.score == "loss":
                    adlp.update(index, loss, loss_perturbed)
                elif variant.score == "probability":
                    adlp.update(index, torch.exp(-loss), torch.exp(-loss_perturbed))
            optimizer.step()
            samples += len(index) * (1 if loss_perturbed is None else 2)
        schedule.step()
    return model, adlp, samples


def proportional(scores: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``k`` of the samples in proportion to their scores, and their normalised weights."""
    scores, bounds = in_proportion(scores)
    noise = torch.empty_like(scores).exponential_(generator=generator)
    keep = ops.subset_sample(scores, k, **bounds, noise=noise)
    weights = ops.subset_weights(scores, keep, noise, **bounds)
    return keep, weights / weights.mean()


def in_proportion(scores: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Scores that are not below ``FLOOR`` of their mean, and bounds with which Eq. 8 keeps their ratios."""
    scores = scores.where(scores.isfinite(), scores[scores.isfinite()].amax())
    scores = scores.clamp(min=FLOOR * scores.mean().item())
    return scores, {"s_min": (scores.amin() / scores.amax()).item(), "s_max": 1.0}
