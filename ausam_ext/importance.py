"""The importance weights of chosen batches: kept with what chose them, computed when someone asks."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks, ops
from .adlp import ADLP


class Race(NamedTuple):
    """How ``k`` are chosen in each row of ``noise``, and between which weights (Eq. 8)."""

    k: int
    s_min: float
    s_max: float
    noise: Tensor


def number_kept(n: int, share: float) -> int:
    """Of ``n`` samples: two at least, or BatchNorm would refuse them; 1e-6, as .29 * 100 is below 29."""
    return max(min(2, n), math.floor(share * n + 1e-6))


def columns(adlp: ADLP, index: Tensor) -> tuple[Tensor, ...]:
    """What the table holds of these samples, for :func:`scores`; later visits change the table."""
    return tuple(t.index_select(0, index) for t in (adlp.total, adlp.count, adlp.tried))


def scores(total: Tensor, count: Tensor, tried: Tensor) -> Tensor:
    """As :func:`ausam_ext.ops.adlp_sample` has them (Eq. 6): NaN if never visited, 0 if only tried."""
    return (total / count).where((count != 0) | (tried == 0), 0)


class Choice:
    """What chose the batches of a block; the weights of all are computed at once, when first asked for.

    Args:
        race: with noise of shape ``[batches, n]``, or ``[n]`` for one batch.
        positions: what was chosen.
        known: the :func:`columns` of the candidates, at that time.
    """

    def __init__(self, race: Race, positions: Tensor, known: tuple[Tensor, ...]) -> None:
        self._made_with: tuple[Race, Tensor, tuple[Tensor, ...]] | None = (race, positions, known)
        self._weights: dict[bool, Tensor] = {}  # by whether they are normalised

    def weights(self, batch: int | None, normalize: bool) -> Tensor:
        if self._made_with is not None:
            race, positions, known = self._made_with
            of_noise = scores(*known).view(race.noise.shape)
            plain = ops.subset_weights(of_noise, positions, race.noise, s_min=race.s_min, s_max=race.s_max)
            self._weights = {False: plain, True: plain / plain.mean(-1, keepdim=True)}
            self._made_with = None
        weights = self._weights[normalize]
        # The caller's own, who may ask again in the second pass.
        return (weights if batch is None else weights[batch]).clone()


class HandedOut(NamedTuple):
    """A batch that the training loop has received."""

    samples: Tensor  # their index; that of all candidates, if the loop takes `keep` of them
    choice: Choice | None = None  # None if all candidates were kept
    batch: int | None = None  # its number in the choice, if that is of several
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
        """Raises if ``index`` is another; if that would be a synchronisation, says which entries are."""
        checks.tensor("index", index, checks.INDEX, dim=1)
        own = self.samples if self.keep is None else self.samples[self.keep]
        known = index.device.type == "cpu"
        same = index == own if index.shape == own.shape else None
        if same is None or (known and not same.all()):
            shown = (
                f"{own.tolist()}, got {index.tolist()}" if known else f"{len(own)}, got {len(index)} samples"
            )
            raise ValueError(
                "index: expected the batch that indexed() or select() handed out last, the only one whose "
                f"weights are known, {shown}"
            )
        return None if known else same
