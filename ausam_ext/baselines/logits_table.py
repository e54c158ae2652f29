"""The logits of every sample, of the last epochs."""

import math
from typing import Any

import torch
from torch import Tensor

from .. import checks


class LogitsTable:
    """``[num_samples, slots, num_classes]``; what was stored in an epoch is there for ``slots`` epochs.

    NaN means that nothing was stored. There is one sample more, of which that is always so: what is not to
    be stored goes there, so that rows need not be counted, which would synchronise.
    """

    def __init__(
        self, num_samples: int, num_classes: int, slots: int, device: Any, dtype: torch.dtype
    ) -> None:
        self.num_samples = checks.integer("num_samples", num_samples, 1)
        self.num_classes = checks.integer("num_classes", num_classes, 2)
        if dtype not in checks.FLOATING:
            raise TypeError(f"dtype: expected one of {', '.join(map(str, checks.FLOATING))}, got {dtype!r}")
        shape = self.num_samples + 1, slots, self.num_classes
        self._rows = torch.full(shape, math.nan, dtype=dtype, device=device)
        self._epochs: list[int | None] = [None] * slots  # in which each slot was begun
        self._outside = torch.zeros((), dtype=torch.int32, device=device)  # entries of indices, on a GPU

    def begin(self, epoch: int) -> None:
        """Empties the slot of the epoch, unless it is gone on with."""
        slot = epoch % len(self._epochs)
        if self._epochs[slot] != epoch:
            self._rows[:, slot] = math.nan
            self._epochs[slot] = epoch

    def place(self, index: Any, logits: Any) -> Tensor:
        """Checks both; returns the index where the table is."""
        checks.tensor("index", index, checks.INDEX, dim=1)
        checks.tensor("logits", logits, checks.FLOATING, dim=2)
        if logits.shape != (expected := (len(index), self.num_classes)):
            raise ValueError(
                f"logits: expected a row for each index and a column for each class, {expected}, got "
                f"{tuple(logits.shape)}"
            )
        checks.inside(index, self.num_samples)
        # The host does not wait by itself for what it sends to a GPU.
        placed = index.to(self._rows.device, torch.int64, non_blocking=index.device.type == "cpu")
        return placed if index.device.type == "cpu" else self.reachable(placed)

    def reachable(self, index: Tensor) -> Tensor:
        """Counts what is outside, which on CUDA nothing has refused, and sends it to the last row."""
        inside = (index >= 0) & (index < self.num_samples)
        self._outside += (~inside).sum()
        return index.where(inside, self.num_samples)

    @torch.no_grad()
    def store(self, epoch: int, index: Tensor, logits: Tensor) -> None:
        """Stores the rows that are finite in the table's dtype."""
        logits = logits.to(self._rows)
        stored = logits.isfinite().all(1) & (index < self.num_samples)
        place = index.where(stored, self.num_samples)
        slot = self._rows[:, epoch % len(self._epochs)]
        slot.index_copy_(0, place, logits.where(stored[:, None], math.nan))

    def at(self, epoch: int, index: Tensor) -> Tensor | None:
        """What was stored in that epoch, NaN if nothing was; None if the table is not of it."""
        slot = epoch % len(self._epochs)
        if self._epochs[slot] != epoch:
            return None
        return self._rows[:, slot].index_select(0, index)

    def check(self) -> None:
        """Raises ``IndexError`` if an index on a GPU was outside the table since the last check."""
        if outside := int(self._outside):
            self._outside.zero_()
            raise IndexError(
                f"index: {outside} entries given to penalty() were outside the table of {self.num_samples} "
                f"samples and were skipped; expected 0 <= index < {self.num_samples}"
            )

    def state_dict(self) -> dict[str, Any]:
        self.check()
        return {"epochs": list(self._epochs), "logits": self._rows[:-1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rows, epochs = self._rows[:-1], list(state["epochs"])
        logits = checks.tensor("logits", state["logits"], [rows.dtype])
        checks.same_shape("logits", logits, "this table's, [num_samples, delay + 1, num_classes]", rows)
        self._epochs = epochs
        rows.copy_(logits)
        self._outside.zero_()
