"""SAF, sharpness-aware training for free (Du et al. 2022, arXiv 2205.14083).

In epoch ``E``, of a batch of samples ``i`` with logits ``z_i``:

1. ``table[i, E % (delay + 1)] = z_i``
2. ``past_i = table[i, (E - delay) % (delay + 1)]``, which was stored ``delay`` epochs ago
3. if ``E > start_epoch``: ``L = CE + lam * tau^2 * mean_i KL(softmax(past_i / tau) || softmax(z_i / tau))``

Cost: 1 forward and 1 backward, of SAM's 2 and 2; the table.

In the official code a sample that was not visited ``delay`` epochs ago is held to whatever its slot has:
zeros (equal probabilities), or logits of an earlier round through the slots. Here it has no term. There the
table is on the CPU and in float32.
"""

from typing import Any

import torch
from torch import Tensor

from .. import checks
from .distillation import Distillation
from .logits_table import LogitsTable


class SAF(Distillation):
    """Holds each sample to its logits of ``delay`` epochs ago::

        for epoch in range(epochs):
            saf.set_epoch(epoch)
            for index, (x, y) in batches.indexed(loader):
                logits = model(x)
                (F.cross_entropy(logits, y) + saf.penalty(index, logits)).backward()

    The table has ``num_samples * (delay + 1) * num_classes`` numbers of ``dtype``: 80 MB for CIFAR-100, a
    delay of 3 and float32. On another device than the logits, every :meth:`penalty` synchronises; on theirs
    only :meth:`set_epoch` and :meth:`state_dict` do, to report an index outside the table of a GPU.

    Each of several processes keeps what it saw. A ``DistributedSampler`` that shuffles hands a sample to
    another process in another epoch, which has no past logits of it: there the term drops.

    Args:
        num_samples: how many samples the training set has.
        num_classes: columns of the logits, at least 2.
        lam: weight of the term, not below 0.
        tau: temperature, above 0.
        delay: how many epochs ago, at least 1.
        start_epoch: the last epoch without the term; -1 if none is.
        device: of the table; best that of the logits. By default torch's default device.
        dtype: of the table: float32, float64, bfloat16 or float16.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        lam: float = 0.3,
        tau: float = 5.0,
        delay: int = 3,
        start_epoch: int = 5,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(lam, tau, start_epoch)
        self.delay = checks.integer("delay", delay, 1)
        self._table = LogitsTable(num_samples, num_classes, self.delay + 1, device, dtype)
        self._table.begin(0)

    def set_epoch(self, epoch: int) -> None:
        """Call it before each epoch; the first is 0. The epoch of a loaded state goes on from its place.

        Raises:
            IndexError: a GPU was given an index outside the table since the last call.
        """
        self._table.check()
        super().set_epoch(epoch)
        self._table.begin(self.epoch)

    def penalty(self, index: Tensor, logits: Tensor) -> Tensor:
        """What to add to the loss; the logits are kept, also while there is no term.

        The mean is over the whole batch; a sample without logits of ``delay`` epochs ago adds 0 to it. A row
        that is not finite in the table's dtype is not stored; of a sample that comes twice, one row is.

        Args:
            index: ``[n]``, int32 or int64, on any device: which samples they are.
            logits: ``[n, num_classes]``; float32, float64, bfloat16 or float16.

        Returns:
            0-d, float32, or float64 for float64 logits; a zero without a gradient up to ``start_epoch``, and
            if nothing was stored ``delay`` epochs ago.

        Raises:
            TypeError, ValueError: the arguments do not fit each other or the table.
            IndexError: an index outside the table, and nothing was stored. If ``index`` is on a GPU, its row
                is skipped, and the next :meth:`set_epoch` or :meth:`state_dict` raises.
        """
        index = self._table.place(index, logits)
        self._table.store(self.epoch, index, logits)
        past = self._table.at(self.epoch - self.delay, index) if self._begun() else None
        return self._term(past, logits)

    def state_dict(self) -> dict[str, Any]:
        """Everything of this process, as numbers and references to the tensors, not copies.

        Raises:
            IndexError: as :meth:`set_epoch`.
        """
        return {**super().state_dict(), **self._table.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, saved on any device.

        Raises:
            KeyError, TypeError, ValueError: something is missing; the state is not one of a SAF, of another
                version, or its table of another shape or dtype. Nothing is changed.
        """
        epoch = self._epoch_of(state)
        self._table.load_state_dict(state)
        self.epoch = epoch
