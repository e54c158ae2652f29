"""Weights away from where they belong, and exactly back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import guards, ops
from .copies import mark_unwritten, were_written


class Away:
    """Brings ``weights`` back to what ``backups`` hold, however the block ends.

    ::

        with Away(self, weights, backups) as away:
            ...  # fills the backups and moves the weights
            away.arrived()

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

    def __enter__(self) -> "Away":
        if not torch.compiler.is_compiling():
            mark_unwritten(self._backups)
        return self

    def arrived(self) -> None:
        """The weights have moved."""
        guards.INSIDE.append(self._owner)
        self._arrived = True
        _drop_casts()

    def __exit__(self, *_: object) -> None:
        if self._owner in guards.INSIDE:
            guards.INSIDE.remove(self._owner)
        if self._arrived or were_written(self._backups):  # a KeyboardInterrupt may come before arrived()
            ops.restore_(self._weights, self._backups)
        _drop_casts()


def _drop_casts() -> None:
    """Autocast keeps what it cast for as long as its block lasts: the weights before the change. (Compiled
    code keeps nothing, and Dynamo of torch 2.11 does not know the call.)"""
    if not torch.compiler.is_compiling():
        torch.clear_autocast_cache()
