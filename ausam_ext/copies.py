"""Copies that tensors come back from."""

import torch
from torch import Tensor


class Copies:
    """Memory for copies of some of ``n`` tensors, kept: to allocate it anew costs more than to fill it."""

    def __init__(self, n: int) -> None:
        self._kept: list[Tensor | None] = [None] * n

    def memory(self, places: list[int], tensors: list[Tensor]) -> list[Tensor]:
        """What is kept for ``tensors``, which stand at ``places``; made where it is missing."""
        found = []
        for i, like in zip(places, tensors, strict=True):
            t = self._kept[i]
            if t is None:
                t = self._kept[i] = torch.empty_like(like, requires_grad=False)
            found.append(t)
        return found

    def forget(self) -> None:
        self._kept = [None] * len(self._kept)


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
