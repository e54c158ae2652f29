"""The importance weights of chosen batches: kept with what chose them, computed when someone asks."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks, ops


class Choice:
    """What chose the batches of a block; the weights of all are computed at once, when first asked for.

    Args:
        scores, noise: ``[batches, n]``, as they were: later visits change the table.
        positions: ``[batches, k]``.
        s_min, s_max: as in :func:`ausam_ext.ops.subset_weights`.
    """

    def __init__(
        self, scores: Tensor, positions: Tensor, noise: Tensor, *, s_min: float, s_max: float
    ) -> None:
        self._made_with: tuple[Tensor, Tensor, Tensor] | None = (scores, positions, noise)
        self._bounds = (s_min, s_max)
        self._weights: dict[bool, Tensor] = {}  # by whether they are normalised

    def weights(self, batch: int, normalize: bool) -> Tensor:
        if self._made_with is not None:
            s_min, s_max = self._bounds
            plain = ops.subset_weights(*self._made_with, s_min=s_min, s_max=s_max)
            self._weights = {False: plain, True: plain / plain.mean(-1, keepdim=True)}
            self._made_with = None
        return self._weights[normalize][batch].clone()  # the caller's, who may ask again in the second pass


class HandedOut(NamedTuple):
    """A batch that the training loop has received."""

    samples: Tensor  # their index; that of all candidates, where the loop takes `keep` of them
    choice: Choice | None = None  # None where all candidates were kept
    batch: int = 0  # its number in the choice
    keep: Tensor | None = None

    def weights(self, index: Tensor, normalize: bool) -> Tensor:
        """As :meth:`ausam_ext.AUSAMBatchSampler.weights`; ``index`` is on the table's device."""
        same = None
        if index is not self.samples or self.keep is not None:
            same = self._compare(index)
        if self.choice is None:
            weights = torch.ones(len(index), dtype=torch.float32, device=index.device)
        else:
            weights = self.choice.weights(self.batch, normalize)
        return weights if same is None else weights.where(same, float("nan"))

    def _compare(self, index: Tensor) -> Tensor | None:
        """Raises if ``index`` is another; where that would be a synchronisation, says which entries are."""
        checks.tensor("index", index, checks.INDEX, dim=1)
        own = self.samples if self.keep is None else self.samples[self.keep]
        known = index.device.type == "cpu"
        same = index == own if index.shape == own.shape else None
        if same is None or (known and not same.all()):
            shown = (
                f"{own.tolist()}, got {index.tolist()}" if known else f"{len(own)}, got {len(index)} samples"
            )
            raise ValueError(
                "index: expected the batch that indexed() or select() handed out last, whose weights alone "
                f"are known, {shown}"
            )
        return None if known else same
