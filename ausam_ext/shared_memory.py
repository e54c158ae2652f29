"""Parameters that lie in one memory: tied through ``.data``, transposed, overlapping views of a fused tensor.

To perturb one is to move the others. Together they are one weight, whose gradient is the sum of theirs: so
that is what is perturbed, a flat view of all the memory that they cover.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .sharding import is_sharded


class SharedMemory:
    """Finds the parameters that overlap; looks again only once one of them has moved."""

    def __init__(self) -> None:
        self._pointers: list[int] = []
        self._groups: list[list[int]] = []

    def groups(self, params: Sequence[Tensor]) -> list[list[int]]:
        """Positions of those that overlap, the one with the lowest address first in each group."""
        if torch.compiler.is_compiling():
            return []
        pointers = [p.data_ptr() for p in params]
        if pointers != self._pointers:
            self._pointers, self._groups = pointers, _overlapping(params)
        return self._groups


def _overlapping(params: Sequence[Tensor]) -> list[list[int]]:
    spans = sorted((str(p.device), p.data_ptr(), i) for i, p in enumerate(params) if p.numel())
    groups: list[list[int]] = []
    last: tuple[Any, int] = (None, 0)  # device and end of the group that may go on
    for device, start, i in spans:
        end = start + _extent(params[i]) * params[i].element_size()
        if device == last[0] and start < last[1]:
            groups[-1].append(i)
            last = device, max(end, last[1])
        else:
            groups.append([i])
            last = device, end
    return [group for group in groups if len(group) > 1]


def _extent(t: Tensor) -> int:
    """Elements of memory from the first to the last of ``t``."""
    return 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))


def owns_its_memory(grad: Tensor) -> bool:
    """Whether a gradient is not a part of a larger tensor, which an optimizer or the loop may have."""
    if grad.layout is not torch.strided or grad.untyped_storage().nbytes() == grad.nbytes:
        return True
    return is_sharded(grad) or grad.requires_grad


def flat(params: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A group as one weight, in its own memory, and one gradient.

    Raises:
        TypeError: the parameters have several dtypes.
    """
    first, size = params[0], params[0].element_size()
    if any(p.dtype != first.dtype for p in params):
        raise TypeError(
            "params: expected one dtype for parameters that share memory, got "
            + ", ".join(str(p.dtype) for p in params)
        )
    starts = [(p.data_ptr() - first.data_ptr()) // size for p in params]
    n = max(start + _extent(p) for start, p in zip(starts, params, strict=True))
    weight = first.detach().as_strided((n,), (1,), first.storage_offset())
    grad = torch.zeros_like(weight)
    for start, p, g in zip(starts, params, grads, strict=True):
        grad.as_strided(p.shape, p.stride(), start).add_(g)
    return weight, grad


def merge(groups: list[list[int]], weights: list[Tensor], others: list[Tensor]) -> list[int]:
    """Puts the :func:`flat` of each group in the place of its first member; gives the places that remain."""
    for members in groups:
        first = members[0]
        weights[first], others[first] = flat([weights[i] for i in members], [others[i] for i in members])
    gone = {i for _, *rest in groups for i in rest}
    return [i for i in range(len(weights)) if i not in gone]
