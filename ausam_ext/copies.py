"""Copies that tensors come back from."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


class Copies:
    """Memory for copies, kept under keys: to allocate it anew costs more than to fill it."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Tensor] = {}

    def of(self, keys: Sequence[Hashable], tensors: Sequence[Tensor]) -> list[Tensor]:
        """What is kept under ``keys`` for ``tensors``; made anew if it does not fit (any more)."""
        found = []
        for key, like in zip(keys, tensors, strict=True):
            t = self._kept.get(key)
            if t is None or t.shape != like.shape or t.dtype != like.dtype or t.device != like.device:
                t = self._kept[key] = torch.empty_like(like, requires_grad=False)
            found.append(t)
        return found


def mark_unwritten(copies: list[Tensor]) -> None:
    """Marks copies as not written yet, all by the last that has elements."""
    for copy in reversed(copies):
        if copy.numel():
            copy.fill_(torch.nan)
            return


def were_written(copies: list[Tensor]) -> bool:
    """Whether one operator has written the copies since they were marked (synchronises)."""
    last = next((copy for copy in reversed(copies) if copy.numel()), None)
    return last is not None and not bool(last.isnan().all())
