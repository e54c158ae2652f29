"""A choice in proportion to the scores, in place of Eq. 8's: on validation data it was no better, so that the
package has no argument for it."""

from typing import Any

import torch
from torch import Tensor

from ausam_ext import SAM, ops

from ..methods import Task, TwoPasses

FLOOR = 0.1  # of the mean score: the least that a sample counts for


class Proportional(TwoPasses):
    """Half of each batch after the first epoch, in proportion to the scores; weighted."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, SAM(task.model, task.rho), "loss")
        self.importance: Tensor | None = None

    def step(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        at: Any = self.batches.state_dict()
        self.importance = None
        if at["epoch"] > 0:
            # By random numbers that depend only on the step, so that nothing has to be saved for them.
            seed = (self.task.seed << 40) + (at["epoch"] << 20) + at["position"]
            generator = torch.Generator(index.device).manual_seed(seed)
            half = max(2, len(index) // 2)
            keep, self.importance = proportional(self.adlp.mean(index), half, generator)
            index, x, y = index[keep], x[keep], y[keep]
        return super().step(index, x, y)

    def weights(self, index: Tensor) -> Tensor | None:
        return self.importance


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
