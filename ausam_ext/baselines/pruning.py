"""Batch samplers that keep some of the samples in an epoch, and weigh them, by each sample's last loss."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from .. import checks
from ..importance import Choice
from ..planned import PlannedBatchSampler
from .last_losses import LastLosses

_TABLES = ("weights", "scores", "recorded")


class PruningBatchSampler(PlannedBatchSampler):
    """A subclass says what weight each sample has in an epoch, 0 for those left out (:meth:`_weigh`).

    When an epoch is planned, and what several processes have to do:
    see :class:`ausam_ext.baselines.InfoBatchSampler`.
    """

    _state_version = 1
    _settings: ClassVar[str]  # names of what has to be the same in all processes

    def _start(self, score: float) -> None:
        """Every sample has that score, and epoch 0 has them all."""
        self._losses = LastLosses(self.num_samples, score)
        self._use(0, torch.ones_like(self._losses.known))

    def _weigh(self, epoch: int, scores: Tensor) -> Tensor:
        """The weights, in a new tensor like ``scores`` (``[num_samples]``, float32, on the CPU)."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self._described(self.num_samples, self._settings)

    def set_epoch(self, epoch: int) -> None:
        """Call it before each epoch; the epoch of a loaded state goes on from its place.

        Raises:
            IndexError: an index was outside the table, on CUDA.
            ValueError: processes differ in their settings, epoch or scores.
        """
        super().set_epoch(epoch)
        if not self._by_hand():
            self._make_plan()

    def _groups(self) -> list[Any]:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return [dist.group.WORLD] if several and self.num_replicas > 1 else []

    def _by_hand(self) -> bool:
        """There are several processes, and ``torch.distributed`` does not know them."""
        return self.num_replicas > 1 and not self._groups()

    def _make_plan(self) -> None:
        """The current epoch's, if it has none."""
        if self._planned == self.epoch:
            return
        alike = [getattr(self, name) for name in ("epoch", "num_samples", *self._settings.split())]
        losses = self._losses.exchange(alike, self._groups())
        if self._by_hand():
            self._check_others(losses[0][0])
        self._losses.settle(losses)
        self._use(self.epoch, self._weigh(self.epoch, self._losses.known))

    def _check_others(self, recorded: Tensor) -> None:
        """What other processes trained on must have been given to this one too."""
        n, others = len(self._kept), self._weights > 0
        others[self._kept[self._candidates(self._planned, n, 0, -(-n // self.num_replicas))]] = False
        if len(recorded) and others.any() and not others[recorded].any():
            raise RuntimeError(
                f"update(): expected the losses of all {self.num_replicas} processes, which do not exchange "
                "them without torch.distributed, got only those of this process's samples"
            )

    def _use(self, epoch: int, weights: Tensor) -> None:
        """The weights of that epoch."""
        self._planned, self._kept = epoch, weights.nonzero().squeeze(1)
        self._weights = self._placed = weights  # on the CPU, and where weights() was asked for them

    def _epoch_size(self) -> int:
        self._make_plan()
        return len(self._kept)

    def _plan(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Choice | None]]:
        self._make_plan()
        kept = self._kept
        for _, numbers in self._blocks(epoch, first, self.num_samples):
            yield kept[numbers], None

    def _recordings(self) -> int:
        return self._losses.recorded._version

    def weights(self, index: Tensor) -> Tensor:
        """Weights in the current epoch of the samples ``index``: int32 or int64, of any shape, anywhere.

        Returns:
            float32, of the shape and on the device of ``index``; 0 for samples that are left out.

        Raises:
            TypeError, IndexError: it is no such tensor, or an entry is outside the table (NaN on CUDA).
        """
        known = checks.inside(checks.tensor("index", index, checks.INDEX), self.num_samples)
        self._make_plan()
        if known:
            return self._weights[index.long()]
        if self._placed.device != index.device:
            self._placed = self._weights.to(index.device, non_blocking=index.device.type != "cpu")
        inside = (index >= 0) & (index < self.num_samples)
        return self._placed[index.where(inside, 0).long()].where(inside, math.nan)

    def update(self, index: Tensor, loss: Tensor) -> None:
        """Records losses, from which the next epoch is planned; one that is not finite is left out.

        Args:
            index: ``[n]``, int32 or int64, on the CPU or the device of ``loss``.
            loss: ``[n]``, floating-point, not weighted, on any device. No gradient is kept.

        Raises:
            TypeError, ValueError: the arguments do not fit each other.
            IndexError: an index outside the table; on CUDA when the next epoch is planned.
        """
        self._losses.update(index, loss)

    def state_dict(self) -> dict[str, Any]:
        """How far training is: numbers, and references to the tensors, not copies.

        With several processes, the state of one is enough for all if it is saved after :meth:`set_epoch`, or
        after a loop over all of :meth:`indexed`. Within an epoch each has its own losses: save and load each.
        """
        tables = (self._weights, self._losses.known, self._losses.recorded)
        own = {"rank": self.rank, "planned": self._planned, **dict(zip(_TABLES, tables, strict=True))}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; the next iteration hands out the rest of the epoch.

        Raises:
            KeyError: something is missing.
            ValueError: the state is of another version or number of samples; or, within an epoch, of another
                ``batch_size``, ``shuffle``, rank or number of processes. Nothing is changed.
        """
        self._check_state(state)
        planned, tables = state["planned"], [state[name] for name in _TABLES]
        if any(len(t) != self.num_samples for t in tables):
            raise ValueError(
                f"num_samples: expected {len(tables[0])}, as the state has, got {self.num_samples}: was it "
                "saved with another training set?"
            )
        weights, *losses = tables
        whose, here = (state["rank"], state["num_replicas"]), (self.rank, self.num_replicas)
        own = whose[1] > 1 and not losses[1].isnan().all()  # losses that other processes lack
        if own and whose != here and not self._by_hand():
            raise ValueError(
                f"rank: expected {whose[0]} of {whose[1]}, the only one that knows this state's latest "
                f"losses, got {here[0]} of {here[1]}; let each process load its own state, or one saved "
                "after set_epoch()"
            )
        super().load_state_dict(state)
        self._use(planned, weights.to("cpu", copy=True))
        self._losses.load(*losses)
