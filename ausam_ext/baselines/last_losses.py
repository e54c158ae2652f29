"""The last loss of every sample: recorded where losses are computed, known to all when an epoch begins."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import checks
from ..sharding import everyones


class LastLosses:
    """What was known when the epoch began, and what has been recorded since.

    Args:
        num_samples: how many the data set has.
        initial: the value of samples without a loss.

    Attributes:
        known: ``[num_samples]``, float32, on the CPU. Never changed in place.
    """

    def __init__(self, num_samples: int, initial: float) -> None:
        self.known = torch.full((num_samples,), initial, dtype=torch.float32, device="cpu")
        self._record_anew("cpu")

    def _record_anew(self, device: torch.device | str) -> None:
        # NaN for none. The last two take what is not recorded: losses that are not finite, and those of
        # samples outside the table, which on CUDA can only be noticed later.
        n = len(self.known) + 2
        self._recorded = torch.full((n,), math.nan, dtype=torch.float32, device=device)

    @property
    def recorded(self) -> Tensor:
        """``[num_samples]``, float32, on the device of the losses; NaN for none."""
        return self._recorded[:-2]

    def update(self, index: Tensor, loss: Tensor) -> None:
        """As :meth:`ausam_ext.baselines.InfoBatchSampler.update`."""
        checks.tensor("index", index, checks.INDEX, dim=1)
        loss = checks.per_sample(loss, index).detach().float()
        if index.device.type != "cpu":
            index = index.to(loss.device)
        known = checks.inside(index, len(self.known))
        self._recorded = self._recorded.to(loss.device)
        # The host does not wait by itself for a copy that comes to it.
        index = index.to(loss.device, torch.int64, non_blocking=loss.device.type != "cpu")
        finite, n = loss.isfinite(), len(self.known)
        place = index.where(finite, n)
        if not known:
            place = place.where((index >= 0) & (index < n), n + 1)
        self._recorded[place] = loss.where(finite, 0)

    def exchange(self, alike: list[Any], groups: Sequence[dist.ProcessGroup]) -> list[tuple[Tensor, Tensor]]:
        """Samples and losses that each process of the groups recorded, by rank (synchronises).

        Raises, in all processes if in one:
            IndexError: an index was outside the table.
            ValueError: the processes differ in ``alike``, or in what they knew before.
        """
        recorded = self._recorded.cpu()
        index = recorded[:-2].isfinite().nonzero().squeeze(1)
        mine = {
            "losses": (index, recorded[index]),
            "outside": not recorded[-1].isnan(),
            "alike": [*alike, int(self.known.view(torch.int32).sum())],
        }
        of_all = everyones(mine, groups)
        self._recorded[-1] = math.nan
        if any(of_all["outside"]):
            raise IndexError(
                "index: some that update() was given were outside the table, and were skipped; expected "
                f"0 <= index < {len(self.known)}"
            )
        if any(one != mine["alike"] for one in of_all["alike"]):
            raise ValueError(
                "set_epoch(): expected processes with the same epoch, settings and scores, got, by process, "
                f"{of_all['alike']}; give all the same arguments, and load states that were saved together"
            )
        return of_all["losses"]

    def settle(self, losses: list[tuple[Tensor, Tensor]]) -> None:
        """They are known from now on; of a sample that is there several times, the last one."""
        self.known = self.known.clone()
        for index, loss in losses:
            self.known[index] = loss
        self._record_anew(self._recorded.device)

    def load(self, known: Tensor, recorded: Tensor) -> None:
        self.known = known.to("cpu", copy=True)
        self._record_anew(recorded.device)
        self.recorded.copy_(recorded)
