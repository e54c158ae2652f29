"""Copies that tensors come back from."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


class Copies:
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
