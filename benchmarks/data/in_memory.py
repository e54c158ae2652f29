"""Images and labels on the device already: a batch is one indexing operation, nothing to collate."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

Batch = tuple[Tensor, Tensor, Tensor]  # images, labels, and which samples they are


class InMemory(Dataset[Batch]):
    """``x``, of any dtype, and ``y``, on one device; batches are gathered there, on CUDA without waiting.

    A loader needs a ``collate_fn`` that leaves its batch as it is.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = torch.tensor(indices)
        if self.x.is_cuda:
            rows = rows.pin_memory().to(self.x.device, non_blocking=True)
        return self.x[rows], self.y[rows], rows
