"""The table of per-sample statistics that AUSAM samples from."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version

from . import checks, ops

_VERSION = 1
_MERGE_CHUNK = 1 << 22  # samples; bounds the float64 temporaries of a merge to 64 MB


class ADLP:
    """Average DLP of every sample (AUSAM Eq. 6): the mean over visits of ``|L_i(w + epsilon) - L_i(w)|``.

    A float32 sum and an int32 number of visits: 8 bytes a sample, updated in place.

    Args:
        num_samples: how many samples the training set has.
        device: where the table lives; best that of the losses.

    Attributes:
        total: ``[num_samples]``, float32: sums of DLP, in units of the loss.
        count: ``[num_samples]``, int32: visits.
    """

    def __init__(self, num_samples: int, device: torch.device | str | None = None) -> None:
        checks.integer("num_samples", num_samples, 1)
        self.total = torch.zeros(num_samples, dtype=torch.float32, device=device)
        self.count = torch.zeros(num_samples, dtype=torch.int32, device=device)
        # What the processes last agreed on; allocated by the first sync().
        self._synced: tuple[Tensor, Tensor] | None = None
        # Counts indices out of range where raising would be a synchronisation; None where it is not.
        self._invalid: Tensor | None = None
        self._reset_invalid()

    def __len__(self) -> int:
        return self.total.numel()

    def __repr__(self) -> str:
        return f"ADLP({len(self)}, device={str(self.device)!r})"

    @property
    def device(self) -> torch.device:
        return self.total.device

    def update(
        self, index: Tensor, loss: Tensor, loss_perturbed: Tensor, *, skip: Tensor | None = None
    ) -> None:
        """Records one step (Algorithm 1, line 8).

        Args:
            index: ``[B]``, int32 or int64, on any device: which samples the losses belong to.
            loss: ``[B]``: per-sample losses at ``w`` (``reduction="none"``), on the device of the table.
            loss_perturbed: ``[B]``, like ``loss``: the same samples' losses at ``w + epsilon``.
            skip: 0-d bool, on the device of the losses: record nothing if it is true. ``SAM.overflow``, where
                the gradients are scaled.

        Losses that are not finite are skipped. No gradient is kept and nothing is synchronised.

        Raises:
            TypeError, ValueError: the arguments do not fit each other.
            IndexError: an index outside the table; on CUDA only at the next :meth:`state_dict`, :meth:`sync`
                or plan of an epoch.
        """
        index = self.place(index)
        if skip is not None:
            loss_perturbed = loss_perturbed.detach().masked_fill(skip, math.nan)
        ops.adlp_update_(self.total, self.count, index, loss, loss_perturbed, invalid=self._invalid)

    def place(self, index: Tensor) -> Tensor:
        """``index`` on the device of the table."""
        checks.tensor("index", index, checks.INDEX)
        return index if index.device == self.device else index.to(self.device, non_blocking=True)

    def mean(self, index: Tensor | None = None) -> Tensor:
        """ADLP of the samples in ``index`` (any shape), or of all: float32, NaN where never visited."""
        if index is None:
            return self.total / self.count
        index = self.place(index)
        checks.inside(index, len(self))
        index = index.long()
        return self.total[index] / self.count[index]

    def sample(
        self, index: Tensor, k: int, *, s_min: float, s_max: float, noise: Tensor | None = None
    ) -> Tensor:
        """:func:`ausam_ext.ops.adlp_sample` on this table."""
        index = self.place(index)
        return ops.adlp_sample(
            self.total, self.count, index, k, s_min=s_min, s_max=s_max, noise=noise, invalid=self._invalid
        )

    def to(self, device: torch.device | str) -> "ADLP":
        """Moves the table, in place, and returns it."""
        self.check()
        self.total, self.count = self.total.to(device), self.count.to(device)
        if self._synced is not None:
            self._synced = (self._synced[0].to(device), self._synced[1].to(device))
        self._reset_invalid()
        return self

    def check(self) -> None:
        """Raises ``IndexError`` if since the last check an index was outside the table (synchronises)."""
        if self._invalid is None:
            return
        outside = int(self._invalid)
        self._invalid.zero_()
        if outside:
            raise IndexError(
                f"index: {outside} entries given to update() or sample() were outside the table of "
                f"{len(self)} samples and were skipped; expected 0 <= index < {len(self)}"
            )

    def _reset_invalid(self) -> None:
        on_cpu = self.device.type == "cpu"
        self._invalid = None if on_cpu else torch.zeros((), dtype=torch.int32, device=self.device)

    @torch.no_grad()
    def sync(self, group: dist.ProcessGroup | None = None) -> None:
        """Adds up what each process recorded since the last sync, so that all hold the same table.

        Call it on every process, once an epoch. Differences are added in float64 and rounded once: a sample
        that only one process visited keeps that process's sum to the last bit. Needs 8 more bytes a sample.

        Raises:
            IndexError: as :meth:`check`.
            RuntimeError: ``torch.distributed`` is not initialised.
        """
        self.check()
        if self._synced is None:
            self._synced = (torch.zeros_like(self.total), torch.zeros_like(self.count))
        for table, synced in zip((self.total, self.count), self._synced, strict=True):
            wide = torch.float64 if table.is_floating_point() else table.dtype
            for now, then in zip(table.split(_MERGE_CHUNK), synced.split(_MERGE_CHUNK), strict=True):
                recorded = now.to(wide) - then.to(wide)
                dist.all_reduce(recorded, group=group)
                now.copy_(then.to(wide) + recorded)
                then.copy_(now)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as numbers and references to the tensors, not copies (as torch's own ``state_dict``).

        Raises:
            IndexError: as :meth:`check`.
        """
        self.check()
        state: dict[str, Any] = {"version": _VERSION, "total": self.total, "count": self.count}
        if self._synced is not None:
            state["synced_total"], state["synced_count"] = self._synced
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, saved on any device.

        Raises:
            KeyError: something is missing.
            ValueError: the state is of another version, or of another number of samples. Nothing is changed.
        """
        if state["version"] != _VERSION:
            raise ValueError(f"version: expected {_VERSION}, got {state['version']}")
        total, count = state["total"], state["count"]
        if total.shape != self.total.shape or count.shape != self.count.shape:
            raise ValueError(
                f"total: expected a table of {len(self)} samples, got one of {tuple(total.shape)}: "
                "was the state saved with another training set?"
            )
        self.total.copy_(total)
        self.count.copy_(count)
        increment_version((self.total, self.count))
        self._synced = None
        if "synced_total" in state:
            self._synced = (
                state["synced_total"].to(self.device, copy=True),
                state["synced_count"].to(self.device, copy=True),
            )
        self._reset_invalid()
