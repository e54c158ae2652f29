"""Copies that tensors come back from, and weights that come exactly back however a block ends."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import misuse, ops


class Backups:
    """Memory for copies, kept under keys: to allocate it anew costs more than to fill it."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Tensor] = {}
        self._pointers: list[int] = []  # of the tensors of the last call,
        self._keys: list[Hashable] = []  # their keys,
        self._found: list[Tensor] = []  # and what was found for them

    def of(self, keys: Sequence[Hashable], tensors: Sequence[Tensor]) -> list[Tensor]:
        """What is kept under ``keys`` for ``tensors``; made anew if it does not fit any more."""
        if torch.compiler.is_compiling():
            return [self._fitting(key, like) for key, like in zip(keys, tensors, strict=True)]
        pointers = [t.data_ptr() for t in tensors]
        if pointers != self._pointers or keys != self._keys:
            self._found = [self._fitting(key, like) for key, like in zip(keys, tensors, strict=True)]
            self._pointers, self._keys = pointers, list(keys)
        return list(self._found)

    def _fitting(self, key: Hashable, like: Tensor) -> Tensor:
        t = self._kept.get(key)
        if t is None or t.shape != like.shape or t.dtype != like.dtype or t.device != like.device:
            t = self._kept[key] = torch.empty_like(like, requires_grad=False)
        return t


def copy_all(source: Sequence[Tensor], to: Sequence[Tensor]) -> None:
    """Copies each tensor, in one launch: what ``restore_`` does, whichever of the two is the backup."""
    if source:
        ops.restore_(to, source)


class Displaced:
    """Weights that a block moves, and that are back when it ends, however it ends.

    ::

        with Displaced(self, weights, backups) as displaced:
            ...  # fills the backups and moves the weights
            displaced.arrived()

    Args:
        owner: whose weights they are: no optimizer of its ``_params`` may step in here.
        weights: what is put back, bit for bit, in the memory that it has.
        backups: where ``weights`` are copied to before they move. The last is written by the call that moves
            them.
    """

    def __init__(self, owner: Any, weights: Sequence[Tensor], backups: Sequence[Tensor]) -> None:
        self._owner = owner
        self._weights, self._backups = list(weights), list(backups)
        self._arrived = False

    def __enter__(self) -> "Displaced":
        if not torch.compiler.is_compiling():
            _mark_unwritten(self._backups)
        return self

    def arrived(self) -> None:
        """The weights have moved."""
        misuse.INSIDE.append(self._owner)
        self._arrived = True
        _drop_casts()

    def __exit__(self, *_: object) -> None:
        if self._owner in misuse.INSIDE:
            misuse.INSIDE.remove(self._owner)
        # A KeyboardInterrupt may come between the kernel and arrived(). No flag that Python sets after the
        # kernel can tell; the backups themselves do.
        if self._arrived or _were_written(self._backups):
            copy_all(self._backups, to=self._weights)
        _drop_casts()


def _mark_unwritten(backups: list[Tensor]) -> None:
    """Marks all as not written yet, by the last that has elements."""
    for backup in reversed(backups):
        if backup.numel():
            backup.fill_(torch.nan)
            return


def _were_written(backups: list[Tensor]) -> bool:
    """Whether one operator has written them since they were marked (synchronises)."""
    last = next((backup for backup in reversed(backups) if backup.numel()), None)
    return last is not None and not bool(last.isnan().all())


def _drop_casts() -> None:
    """Autocast keeps what it cast for as long as its block lasts: the weights before the change. (Compiled
    code keeps nothing, and Dynamo of torch 2.11 does not know the call.)"""
    if not torch.compiler.is_compiling():
        torch.clear_autocast_cache()
