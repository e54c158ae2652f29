"""The table of per-sample statistics that AUSAM samples from."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version

from . import checks, ops

_VERSION = 3
_WITHOUT_TRIED = 2  # still loaded
_MERGE_CHUNK = 1 << 22  # samples; bounds the float64 temporaries of a merge to 64 MB


class ADLP:
    """Average DLP of every sample (AUSAM Eq. 6): the mean over visits of ``|L_i(w + epsilon) - L_i(w)|``.

    A float32 sum, an int32 number of visits and a uint8 mark: 9 bytes a sample, updated in place, and 8 more
    if processes merge. Nothing else grows with the table but the epoch's merge.

    A sample that was never visited counts as the highest of its batch. One whose DLP has not been finite in
    any visit counts as the lowest, until one is.

    Args:
        num_samples: how many samples the training set has.
        device: of the table; best that of the losses. By default torch's default device.

    Attributes:
        total: ``[num_samples]``, float32: sums of DLP, in units of the loss.
        count: ``[num_samples]``, int32: visits with a finite DLP.
        tried: ``[num_samples]``, uint8: 1 after a visit without.
    """

    def __init__(self, num_samples: int, device: torch.device | str | None = None) -> None:
        num_samples = checks.integer("num_samples", num_samples, 1)
        self.total = torch.zeros(num_samples, dtype=torch.float32, device=device)
        self.count = torch.zeros(num_samples, dtype=torch.int32, device=device)
        self.tried = torch.zeros(num_samples, dtype=torch.uint8, device=device)
        # What the processes last agreed on, allocated if there are several: zeros, until sync() or
        # load_state_dict(). Unknown if the latter ran in one process.
        self._agreed: tuple[Tensor, Tensor] | None = None
        self._agreed_on_zeros = True
        # Counts indices out of range if raising would be a synchronisation; None if it is not.
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
            skip: 0-d bool, on the device of the losses: record nothing if it is true. ``SAM.overflow``, if
                the gradients are scaled.

        A DLP that is not finite is not recorded, and its sample marked as tried; if ``skip`` is given, only
        samples whose ``loss`` is not finite, as an overflow of the gradients says nothing of a sample. No
        gradient is kept and nothing is synchronised.

        Raises:
            TypeError, ValueError: the arguments do not fit each other.
            IndexError: an index outside the table; on CUDA only at the next :meth:`state_dict`, :meth:`sync`
                or plan of an epoch.
        """
        if loss_perturbed is None:
            raise TypeError(
                "loss_perturbed: expected a tensor, got None: this step took one pass; call update() only if "
                "loss_perturbed is not None"
            )
        index = self.place(index)
        if loss is loss_perturbed or _same_memory(loss, loss_perturbed):
            raise ValueError(
                "loss_perturbed: expected the losses at w + epsilon, got the tensor given as loss, or one "
                "in its memory; clone() the first losses if the second pass writes to the same buffer"
            )
        if skip is None:
            ops.adlp_update_(
                self.total, self.count, index, loss, loss_perturbed, invalid=self._invalid, tried=self.tried
            )
            return
        checks.tensor("skip", skip, [torch.bool], dim=0)
        checks.tensor("loss_perturbed", loss_perturbed, checks.FLOATING)
        loss_perturbed = loss_perturbed.detach().masked_fill(skip, math.nan)
        ops.adlp_update_(self.total, self.count, index, loss, loss_perturbed, invalid=self._invalid)
        self._mark(index, ~loss.detach().isfinite())

    def _mark(self, index: Tensor, failed: Tensor) -> None:
        """Marks samples as tried, apart from an update in which no DLP is finite."""
        last = len(self) - 1
        inside = (index >= 0) & (index <= last)
        marks = (failed & inside).to(self.tried.dtype)
        self.tried.scatter_reduce_(0, index.clamp(0, last).long(), marks, "amax")

    def place(self, index: Tensor) -> Tensor:
        """``index`` on the device of the table."""
        checks.tensor("index", index, checks.INDEX)
        device = self.total.device
        if index.device == device:
            return index
        # The host does not wait by itself for a copy that comes to it.
        return index.to(device, non_blocking=device.type != "cpu")

    def look_for_outside(self, index: Tensor) -> None:
        """An entry outside the table is an ``IndexError``, at once or later, as in :meth:`update`."""
        checks.inside(index, len(self), self._invalid)
        if self._invalid is not None:
            self._invalid.add_(((index < 0) | (index >= len(self))).sum())

    def mean(self, index: Tensor | None = None) -> Tensor:
        """ADLP of the samples in ``index`` (any shape), or of all: float32, NaN if ``count`` is 0.

        Raises:
            IndexError: as :meth:`update`.
        """
        if index is None:
            return self.total / self.count
        index = self.place(index)
        self.look_for_outside(index)
        inside = (index >= 0) & (index < len(self))
        index = index.where(inside, 0).long()
        return (self.total[index] / self.count[index]).where(inside, math.nan)

    def sample(
        self, index: Tensor, k: int, *, s_min: float, s_max: float, noise: Tensor | None = None
    ) -> Tensor:
        """:func:`ausam_ext.ops.adlp_sample` on this table."""
        index = self.place(index)
        marks: dict[str, Any] = {"invalid": self._invalid, "tried": self.tried}
        return ops.adlp_sample(
            self.total, self.count, index, k, s_min=s_min, s_max=s_max, noise=noise, **marks
        )

    def to(self, device: torch.device | str) -> "ADLP":
        """Moves the table, in place, and returns it."""
        self.check()
        self.total, self.count = self.total.to(device), self.count.to(device)
        self.tried = self.tried.to(device)
        if self._agreed is not None:
            self._agreed = (self._agreed[0].to(device), self._agreed[1].to(device))
        self._reset_invalid()
        return self

    def check(self) -> None:
        """Raises ``IndexError`` if since the last check an index was outside the table (synchronises)."""
        if outside := self._take_invalid():
            raise IndexError(self._outside(outside))

    def _take_invalid(self) -> int:
        if self._invalid is None:
            return 0
        outside = int(self._invalid)
        self._invalid.zero_()
        return outside

    def _outside(self, entries: int) -> str:
        return (
            f"index: {entries} entries given to update(), sample() or mean() were outside the table of "
            f"{len(self)} samples and were skipped; expected 0 <= index < {len(self)}"
        )

    def _reset_invalid(self) -> None:
        on_cpu = self.device.type == "cpu"
        self._invalid = None if on_cpu else torch.zeros((), dtype=torch.int32, device=self.device)

    @torch.no_grad()
    def sync(self, group: dist.ProcessGroup | None = None) -> None:
        """Adds up what each process recorded since the last sync, so that all hold the same table.

        Call it on every process, once an epoch and before :meth:`state_dict`. Differences are added in
        float64 and rounded once: a sample that only one process visited keeps that process's sum to the last
        bit. A sample that one process tried, all did. In a group of one process it only checks.

        Raises:
            IndexError: as :meth:`check`, on every process if on one.
            ValueError: the processes' tables differ in length, or did not begin alike: on every process, and
                nothing is changed. Or ``torch.distributed`` is not initialised.
            RuntimeError: a process failed or left, and this table is not valid any more.
        """
        if dist.get_world_size(group) == 1:
            return self.check()
        try:
            agreed = self._agree(group)
            for now, then in zip((self.total, self.count), agreed, strict=True):
                _merge(now, then, group)
            dist.all_reduce(self.tried, op=dist.ReduceOp.MAX, group=group)
        except RuntimeError as error:
            raise RuntimeError(
                "sync(): a process failed or left, and this table is not valid any more: go on from a "
                f"checkpoint. torch.distributed says: {error}"
            ) from error

    def _agree(self, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
        """What the processes agreed on last. All learn of every one, so that all raise or none does, and none
        waits for another."""
        if self._agreed is None and self._agreed_on_zeros:
            self._agreed = (torch.zeros_like(self.total), torch.zeros_like(self.count))
        known = self._agreed is not None
        mine = [len(self), self._take_invalid(), known, *(_fingerprint(t) for t in self._agreed or ())]
        sent = torch.tensor(mine + [0] * (5 - len(mine)), dtype=torch.int64, device=self.device)
        received = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
        dist.all_gather(received, sent, group=group)
        lengths, invalid, all_known, *fingerprints = torch.stack(received, 1).tolist()
        if len(set(lengths)) > 1:
            raise ValueError(f"sync(): expected tables of one length, got {lengths} samples, by process")
        if any(invalid):
            raise IndexError(self._outside(sum(invalid)))
        if not (self._agreed and all(all_known)):
            raise ValueError(
                "sync(): a state was loaded before torch.distributed was initialised; load it after, so that "
                "what the processes share is known"
            )
        if any(len(set(of_all)) > 1 for of_all in fingerprints):
            raise ValueError(
                "sync(): the processes did not begin with the same table; load one state on all of them, "
                "saved after sync()"
            )
        return self._agreed

    def state_dict(self) -> dict[str, Any]:
        """Everything, as numbers and references to the tensors, not copies (as torch's own ``state_dict``).

        With several processes, call :meth:`sync` first: then the state is the same on all, and one checkpoint
        is enough for all. Without, it lacks what other processes recorded since the last sync.

        Raises:
            IndexError: as :meth:`check`.
        """
        self.check()
        return {"version": _VERSION, "total": self.total, "count": self.count, "tried": self.tried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, saved on any device by any number of processes.

        From a state of version 2, which has no ``tried``, no sample was.

        With several processes, load the same state on each, after ``torch.distributed`` is initialised.

        Raises:
            KeyError: something is missing.
            ValueError: the state is of another version, or of another number of samples. Nothing is changed.
        """
        names = ["total", "count"]
        if state["version"] != _WITHOUT_TRIED:
            checks.version(state, _VERSION)
            names.append("tried")
        saved = {name: state[name] for name in names}
        for name, column in saved.items():
            if column.shape != self.total.shape:
                raise ValueError(
                    f"{name}: expected a table of {len(self)} samples, got one of {tuple(column.shape)}: "
                    "was the state saved with another training set?"
                )
        if "tried" not in saved:
            self.tried.zero_()
        for name, column in saved.items():
            getattr(self, name).copy_(column)
        increment_version((self.total, self.count, self.tried))
        self._agreed, self._agreed_on_zeros = None, False
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._agreed = (self.total.clone(), self.count.clone())
        self._reset_invalid()


def _same_memory(loss: Any, loss_perturbed: Any) -> bool:
    if torch.compiler.is_compiling() or not (isinstance(loss, Tensor) and isinstance(loss_perturbed, Tensor)):
        return False
    address = loss.data_ptr()
    return address != 0 and address == loss_perturbed.data_ptr()  # 0: no elements


def _merge(now: Tensor, then: Tensor, group: dist.ProcessGroup | None) -> None:
    """``now = then +`` the sum over processes of ``now - then``; ``then`` becomes the same."""
    wide = torch.float64 if now.is_floating_point() else now.dtype
    for new, old in zip(now.split(_MERGE_CHUNK), then.split(_MERGE_CHUNK), strict=True):
        recorded = new.to(wide) - old.to(wide)
        dist.all_reduce(recorded, group=group)
        new.copy_(old.to(wide) + recorded)
        old.copy_(new)


def _fingerprint(table: Tensor) -> int:
    """Tells tables apart, unless one is a rearrangement of the other."""
    return sum(int(part.sum()) for part in table.view(torch.int32).split(_MERGE_CHUNK))
