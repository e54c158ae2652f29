"""AUSAM's choice of samples, made before they are loaded."""

import math
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from . import checks
from .adlp import ADLP

_VERSION = 1
_NOISE_ROWS = 64  # batches whose noise is drawn at once

Batch = TypeVar("Batch")


class AUSAMBatchSampler(Sampler[list[int]]):
    """Cuts each epoch into batches of ``K``, keeps the ``alpha * K`` samples of each that matter most (Alg.
    1).

    ::

        batches = AUSAMBatchSampler(adlp, batch_size=128, alpha=0.5)
        loader = DataLoader(train_set, batch_sampler=batches, num_workers=8)
        for epoch in range(epochs):
            batches.set_epoch(epoch)
            for index, (x, y) in batches.indexed(loader):
                ...

    An epoch is planned when its iteration begins, in one call where the table lives. A sample's score changes
    only when it is visited, so that the plan is exactly the choice made batch by batch, however far workers
    prefetch. Within a batch of ``n`` samples ``max(1, floor(alpha * n + 1e-6))`` are drawn without
    replacement (Eq. 7, 8), with ``s_max`` raised linearly from ``s_min`` in epoch 0 to its value in epoch
    ``warmup_epochs``.

    Args:
        adlp: the table; its length is that of the data set.
        batch_size: ``K``, before the choice; with several processes, of each.
        alpha: share that is kept, above 0 and at most 1.
        s_min, s_max: weights of the lowest and the highest score of a batch, ``0 < s_min <= s_max`` (Eq. 8).
        warmup_epochs: ``E_start``.
        full_epochs: epochs at the start that keep whole batches, so that every sample has a score.
        shuffle: a new permutation of the data set every epoch; otherwise in order.
        drop_last: leave out the last batch if it is shorter.
        seed: of permutations and choices, which depend on it, the epoch and the batch alone.
        rank, num_replicas: this process and their number; by default those of ``torch.distributed``, if that
            is initialised. Each process gets every ``num_replicas``-th sample; some are repeated to make that
            even.
    """

    def __init__(
        self,
        adlp: ADLP,
        batch_size: int,
        alpha: float = 0.5,
        *,
        s_min: float = 0.1,
        s_max: float = 1.0,
        warmup_epochs: int = 30,
        full_epochs: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        if not isinstance(adlp, ADLP):
            raise TypeError(f"adlp: expected an ausam_ext.ADLP, got {type(adlp).__name__}")
        checks.weight_bounds(s_min, s_max)
        distributed = dist.is_available() and dist.is_initialized()
        if num_replicas is None:
            num_replicas = dist.get_world_size() if distributed else 1
        if rank is None:
            rank = dist.get_rank() if distributed else 0
        self.adlp = adlp
        self.batch_size = checks.integer("batch_size", batch_size, 1)
        self.alpha = checks.number("alpha", alpha, "a number above 0 and at most 1", lambda v: 0 < v <= 1)
        self.s_min, self.s_max = s_min, s_max
        self.warmup_epochs = checks.integer("warmup_epochs", warmup_epochs, 0)
        self.full_epochs = checks.integer("full_epochs", full_epochs, 0)
        self.shuffle, self.drop_last = bool(shuffle), bool(drop_last)
        self.seed = checks.integer("seed", seed, 0)
        self.num_replicas = checks.integer("num_replicas", num_replicas, 1)
        self.rank = checks.integer("rank", rank, 0, num_replicas - 1)
        self.epoch = 0
        self._position = 0  # batches of this epoch that were handed to the training loop
        self._plan: list[Tensor] = []  # batches of the rest of the epoch, as the last iterator got them
        self._noise_block: tuple[tuple[int, int], Tensor] | None = None

    def __len__(self) -> int:
        """Batches in an epoch, of this process."""
        n = self._share()
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def _share(self) -> int:
        """Samples of this process in an epoch."""
        return -(-len(self.adlp) // self.num_replicas)

    def set_epoch(self, epoch: int) -> None:
        """Call it before each epoch; the epoch of a loaded state goes on where it was left."""
        checks.integer("epoch", epoch, 0)
        if epoch != self.epoch:
            self.epoch, self._position = epoch, 0

    def __iter__(self) -> Iterator[list[int]]:
        """Plans what is left of the epoch; yields the samples of each batch."""
        self._plan = [row for part in self._plan_epoch() for row in part]
        if not self._plan:
            return iter(())
        host = torch.cat(self._plan).cpu()  # the one copy to the host in an epoch
        return (row.tolist() for row in host.split([len(row) for row in self._plan]))

    def indexed(self, loader: Iterable[Batch]) -> Iterator[tuple[Tensor, Batch]]:
        """Yields ``(index, batch)`` for each batch of a ``DataLoader`` that has this as its
        ``batch_sampler``.

        ``index`` is ``[samples in the batch]``, int64, on the table's device: what ``ADLP.update`` takes.
        Also counts the batches, for :meth:`state_dict`, and moves on to the next epoch after the last.
        Workers get seeds that depend on ``seed``, the epoch and where it begins; torch's own generator is
        left as it is.

        Raises:
            ValueError: ``loader`` has another batch sampler.
        """
        if getattr(loader, "batch_sampler", None) is not self:
            raise ValueError(
                f"loader: expected a DataLoader made with batch_sampler= this sampler, got {loader!r}; for a "
                "loader that cannot take one, choose within the loop with select()"
            )
        return self._indexed(loader)

    def _indexed(self, loader: Iterable[Batch]) -> Iterator[tuple[Tensor, Batch]]:
        # Creating the iterator calls __iter__, which plans, and draws the seed of the workers from torch's
        # generator. Lend it one: else a run that resumes here would have drawn once more than one that never
        # stopped.
        state = torch.get_rng_state()
        torch.set_rng_state(self._generator("workers", self.epoch, self._position, self.rank).get_state())
        try:
            iterator = iter(loader)
        finally:
            torch.set_rng_state(state)
        for index, batch in zip(self._plan, iterator, strict=True):
            self._position += 1
            yield index, batch
        self.set_epoch(self.epoch + 1)

    def select(self, index: Tensor) -> Tensor:
        """The same choice for the next batch, within the loop: for loaders that take no batch sampler.

        ::

            keep = batches.select(index)
            index, x, y = index[keep], x[keep], y[keep]

        Args:
            index: ``[n]``, int32 or int64, ``1 <= n <= batch_size``: the samples of the batch.

        Returns:
            Positions in ``index``, ascending, int64, on the table's device.
        """
        index = self.adlp.place(checks.tensor("index", index, checks.INDEX, dim=1))
        checks.integer("len(index)", index.numel(), 1, self.batch_size, "batch_size =")
        keep = self._choose(index.unsqueeze(0), self._position)[0]
        self._position += 1
        return keep

    def _plan_epoch(self) -> list[Tensor]:
        """Samples of the batches from ``position`` on: ``[batches, alpha * K]``, and a shorter last one."""
        self.adlp.check()
        n = len(self.adlp)
        order = torch.arange(n)
        if self.shuffle:
            order = torch.randperm(n, generator=self._generator("permutation", self.epoch))
        # Strided as DistributedSampler has it; what is repeated goes to another process than the first time.
        padded = self._share() * self.num_replicas
        mine = order.repeat(-(-padded // n))[self.rank : padded : self.num_replicas]
        full = len(mine) // self.batch_size
        parts = []
        if full > self._position:
            parts.append(
                mine[self._position * self.batch_size : full * self.batch_size].view(-1, self.batch_size)
            )
        if len(mine) % self.batch_size and not self.drop_last and self._position <= full:
            parts.append(mine[full * self.batch_size :].unsqueeze(0))
        plan = []
        first = self._position
        for part in parts:
            index = part.to(self.adlp.device)
            plan.append(index.gather(1, self._choose(index, first)))
            first += len(part)
        return plan

    def _choose(self, index: Tensor, first: int) -> Tensor:
        """Positions in each row of ``index`` (``[batches, n]``): the batches from ``first`` on."""
        rows, n = index.shape
        k = max(1, math.floor(self.alpha * n + 1e-6))
        if self.epoch < self.full_epochs or k == n:
            return torch.arange(n, device=index.device).expand(rows, n)
        ramp = min(1.0, self.epoch / self.warmup_epochs) if self.warmup_epochs else 1.0
        s_max = self.s_min + ramp * (self.s_max - self.s_min)
        noise = self._noise(first, rows)[:, :n]
        return self.adlp.sample(index, k, s_min=self.s_min, s_max=s_max, noise=noise)

    def _noise(self, first: int, rows: int) -> Tensor:
        """Exp(1), ``[rows, batch_size]``, for the batches from ``first`` on; drawn alike for all devices."""
        blocks = range(first // _NOISE_ROWS, (first + rows - 1) // _NOISE_ROWS + 1)
        start = first - blocks[0] * _NOISE_ROWS
        return torch.cat([self._block(b) for b in blocks])[start : start + rows]

    def _block(self, block: int) -> Tensor:
        key = (self.epoch, block)
        if self._noise_block is None or self._noise_block[0] != key:
            noise = torch.empty(_NOISE_ROWS, self.batch_size)
            noise.exponential_(generator=self._generator("choice", self.epoch, block, self.rank))
            self._noise_block = (key, noise.to(self.adlp.device))
        return self._noise_block[1]

    def _generator(self, *key: object) -> torch.Generator:
        """One for each purpose, so that a run resumes anywhere without stored random state."""
        digest = blake2b(repr((self.seed, *key)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))

    def state_dict(self) -> dict[str, Any]:
        """Where training stands: what :meth:`indexed` or :meth:`select` handed out, not the prefetched."""
        return {
            "version": _VERSION,
            "epoch": self.epoch,
            "position": self._position,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "num_replicas": self.num_replicas,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; the next iteration hands out the rest of the epoch.

        Raises:
            KeyError: something is missing.
            ValueError: the state is of another version, or, within an epoch, of another ``batch_size`` or
                number of processes. Nothing is changed.
        """
        if state["version"] != _VERSION:
            raise ValueError(f"version: expected {_VERSION}, got {state['version']}")
        for name in ("batch_size", "num_replicas"):
            if state["position"] and state[name] != getattr(self, name):
                raise ValueError(
                    f"{name}: expected {state[name]}, with which this epoch was begun, "
                    f"got {getattr(self, name)}"
                )
        self.seed, self.epoch, self._position = state["seed"], state["epoch"], state["position"]
