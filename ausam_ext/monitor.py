"""What to watch while SAM, vSAM or AUSAM trains: sums on the device, fetched when someone asks."""

from typing import Any

import torch
from torch import Tensor

from .sam import SAM
from .sampler import AUSAMBatchSampler
from .schedule import ScheduledSAM
from .vsam import VSAM

_QUANTILES = {"min": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "max": 1.0}
_LOOKED_AT = 1 << 16  # scores; the quantiles of a larger table are those of as many of it


class Monitor:
    """Means over the steps since the last :meth:`compute`, of what tells whether a method does its work.

    ::

        monitor = Monitor(sam, batches)
        for step, (index, (x, y)) in enumerate(batches.indexed(loader)):
            loss, loss_perturbed = sam.backward(closure)
            optimizer.step()
            monitor.update(loss, loss_perturbed)
            if step % 100 == 0:
                for name, value in monitor.compute().items():
                    writer.add_scalar(f"sam/{name}", value, step)

    Args:
        sam: a ``SAM``, ``VSAM`` or another method with a second pass.
        batches: AUSAM's sampler, for the scores of its table and its ``s_max``.
    """

    def __init__(self, sam: SAM, batches: AUSAMBatchSampler | None = None) -> None:
        if not isinstance(sam, SAM):
            raise TypeError(f"sam: expected a SAM or VSAM, got {sam!r}")
        if not isinstance(batches, (AUSAMBatchSampler, type(None))):
            raise TypeError(f"batches: expected an AUSAMBatchSampler or None, got {batches!r}")
        self.sam, self.batches = sam, batches
        self._reset()

    def _reset(self) -> None:
        self._steps = self._sampled = 0
        self._loss: Tensor | None = None  # sum over steps
        self._of_sampled: Tensor | None = None  # sums over those with a second pass

    @torch.no_grad()
    def update(self, loss: Tensor, loss_perturbed: Tensor | None = None) -> None:
        """Adds a step, after it. Nothing is synchronised.

        Args:
            loss: at ``w``, of any shape, such as per sample; its mean counts.
            loss_perturbed: at ``w + epsilon``; None for a step with one pass.
        """
        mean = loss.detach().mean().float()
        self._loss = mean.clone() if self._loss is None else self._loss + mean
        self._steps += 1
        if loss_perturbed is None:
            return
        unknown = torch.full_like(mean, torch.nan)
        values = [loss_perturbed.detach().mean() - mean, self.sam.grad_norm]
        if isinstance(self.sam, VSAM):
            psf, sgd = self.sam.norms or (unknown, unknown)
            values += [psf, psf / sgd]
        row = torch.stack([unknown if value is None else value.to(mean) for value in values])
        self._of_sampled = row if self._of_sampled is None else self._of_sampled + row
        self._sampled += 1

    def compute(self) -> dict[str, float]:
        """Means since the last call, and the present state; one transfer from the device for each of the two.

        Returns:
            ``loss``; of steps with a second pass ``sharpness`` (``loss_perturbed - loss``), ``grad_norm``,
            and for vSAM ``psf_norm`` and ``psf_ratio`` (Eq. 11, ``||PSF|| / ||g_SGD||``); if the method
            leaves out second passes, their share, ``second_passes``, and for vSAM the ``rate`` that is aimed
            at (Eq. 15). With ``batches``: ``s_max`` of the epoch (Eq. 8); ``visited``, the share of the
            samples that have a score; ``adlp_min``, ``adlp_10%``, ``adlp_median``, ``adlp_90%`` and
            ``adlp_max`` of those (Eq. 6). What there was no step for is left out. Values are of this process.
        """
        found: dict[str, float] = {}
        if self._loss is not None:
            found["loss"] = (self._loss / self._steps).item()
        if self._of_sampled is not None:
            names = ("sharpness", "grad_norm", "psf_norm", "psf_ratio")
            found |= zip(names, (self._of_sampled / self._sampled).tolist(), strict=False)
        if isinstance(self.sam, ScheduledSAM) and self._steps:
            found["second_passes"] = self._sampled / self._steps
        if isinstance(self.sam, VSAM):
            found["rate"] = self.sam.controller.rate
        self._reset()
        return found | self._scores()

    def _scores(self) -> dict[str, Any]:
        if self.batches is None:
            return {}
        scores = self.batches.adlp.mean()
        scores = scores[:: -(-len(scores) // _LOOKED_AT)]
        known = scores[scores.isfinite()]
        found = {"s_max": self.batches.current_s_max, "visited": len(known) / len(scores)}
        if len(known):
            levels = torch.tensor(list(_QUANTILES.values()), device=known.device)
            found |= zip(
                [f"adlp_{name}" for name in _QUANTILES], known.quantile(levels).tolist(), strict=True
            )
        return found
