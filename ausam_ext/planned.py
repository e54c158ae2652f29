"""Batch samplers that plan an epoch before it is loaded: its batches, processes, pairing, state."""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, ClassVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from . import checks, ops
from .importance import Choice, HandedOut
from .indexed_loader import Batch, Batches, IndexedLoader
from .indexed_loader import check as check_loader
from .permutation import draw_keys


class PlannedBatchSampler(Sampler[list[int]]):
    """Permutes an epoch's samples, deals them to processes, cuts each one's share into batches.

    A subclass has a table of the samples. It says how many of them an epoch has (:meth:`_epoch_size`), what
    becomes of the batches (:meth:`_plan`), on which device that is computed (:attr:`_device`), and whether
    training has changed the table (:meth:`_recordings`).

    Args:
        num_samples: how many the data set has.
        batch_size: samples in a batch; with several processes, of each.
        shuffle: a new permutation every epoch; otherwise in order.
        drop_last: leave out the last batch if it is shorter.
        seed: what is drawn depends only on it and on the place in training.
        rank, num_replicas: this process and their number; by default those of ``torch.distributed``, if that
            is initialised. Each process gets every ``num_replicas``-th sample; some are repeated to make that
            even.
    """

    _state_version: ClassVar[int]
    _instead: ClassVar[str] = ""  # what to do if no loader can take a batch sampler

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        rank: int | None,
        num_replicas: int | None,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        if num_replicas is None:
            num_replicas = dist.get_world_size() if distributed else 1
        if rank is None:
            rank = dist.get_rank() if distributed else 0
        self.num_samples = checks.integer("num_samples", num_samples, 1)
        self.batch_size = checks.integer("batch_size", batch_size, 1)
        self.shuffle, self.drop_last = bool(shuffle), bool(drop_last)
        self.seed = checks.integer("seed", seed, 0)
        self.num_replicas = checks.integer("num_replicas", num_replicas, 1)
        self.rank = checks.integer("rank", rank, 0, self.num_replicas - 1)
        self.epoch = 0
        self._position = 0  # batches of this epoch that were handed to the training loop
        # Batches that a loader drew and indexed() has not given out yet: of the loop that is the current one,
        # and of one that begins, until it gets its first batch.
        self._current: deque[HandedOut] | None = None
        self._awaiting: deque[HandedOut] | None = None
        self._handed: HandedOut | None = None  # the batch that the loop got last
        self._restored: Batches | None = None  # by its load_state_dict(), and not used yet
        self._epoch_was_set = False
        # Without set_epoch() and indexed(): what was recorded at the first one's beginning, how many ended.
        self._plain_loops: tuple[int, int] | None = None

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu")

    def _recordings(self) -> int:
        """A number that is another one after training has recorded something."""
        raise NotImplementedError

    def _epoch_size(self) -> int:
        """Samples of the current epoch, of all processes together."""
        return self.num_samples

    def _plan(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Choice | None]]:
        """Samples of the batches from ``first`` on, made of :meth:`_blocks`; what chose them, if not all were
        taken."""
        raise NotImplementedError

    def _described(self, table: object, settings: str) -> str:
        names = (settings + (" rank num_replicas" if self.num_replicas > 1 else "")).split()
        shown = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{type(self).__name__}({table!r}, {shown})"

    def __len__(self) -> int:
        """Batches in the epoch, of this process."""
        n = self._share()
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def _share(self) -> int:
        """Samples of this process in the epoch."""
        return -(-self._epoch_size() // self.num_replicas)

    def set_epoch(self, epoch: int) -> None:
        """Call it before each epoch; the epoch of a loaded state goes on from its place."""
        epoch = checks.integer("epoch", epoch, 0)
        self._epoch_was_set = True
        if epoch != self.epoch:
            self.epoch, self._position = epoch, 0
            self._current = self._restored = None

    def __iter__(self) -> Batches:
        """The samples of each batch that is left of the epoch.

        The iterator has its own ``state_dict()``: up to where it was drawn from, which is what a loader
        with a state needs, such as torchdata's ``StatefulDataLoader``.

        Warns if it begins the same epoch once more without :meth:`set_epoch` or :meth:`indexed`.
        """
        if self._restored is not None and self._restored.position == len(self):
            self.set_epoch(self.epoch + 1)  # a loader that was saved after its last batch drops that iterator
        return Batches(self)

    def _begin(self) -> deque[HandedOut] | None:
        """Takes note of an iterator's first batch; gives where :meth:`indexed` wants to have the batches."""
        if self._awaiting is not None:
            self._awaiting.clear()  # a loader may draw from one iterator, and begin another
        elif not self._epoch_was_set and self._current is None:
            recorded = self._recordings()
            first, ended = self._plain_loops or (recorded, 0)
            # Looking at the batches twice is no training.
            if recorded != first or ended > 1:
                warnings.warn(
                    f"{type(self).__name__}: epoch {self.epoch} begins once more, with the same batches; "
                    "call set_epoch() before each epoch, or loop over indexed(loader), which moves on by "
                    "itself",
                    stacklevel=3,
                )
            self._plain_loops = first, ended
        return self._awaiting

    def _end(self) -> None:
        if self._plain_loops is not None:
            first, ended = self._plain_loops
            self._plain_loops = first, ended + 1

    def indexed(self, loader: Iterable[Batch]) -> IndexedLoader[Batch]:
        """Gives ``(index, batch)`` for each batch of a ``DataLoader`` that has this as its ``batch_sampler``.

        ``index`` is ``[samples in the batch]``, int64, on the table's device: what the table's ``update``
        takes. Also counts the batches, for :meth:`state_dict`, and moves on to the next epoch after the last.
        Workers get seeds that depend on ``seed``, the epoch and where it begins; torch's own generator is
        left as it is.

        Returns:
            A loader with ``len()``, to loop over as often as there are epochs: ``next()`` is of its
            ``iter()``.

        Raises:
            ValueError: ``loader`` has another batch sampler or a data set of another length than the table,
                or gives batches in another order.
            RuntimeError: later: the loader's batches are not those that it drew from this sampler; or this
                loop goes on after another one began or the epoch or the state was set.
        """
        check_loader(loader, self)
        return IndexedLoader(cast(DataLoader[Any], loader))

    def _blocks(self, epoch: int, first: int, at_once: int) -> Iterator[tuple[int, Tensor]]:
        """Candidates of the batches from ``first`` on, numbers below :meth:`_epoch_size`, about ``at_once``
        in a block ``[batches, batch_size]``, and a shorter last one; before each its first batch."""
        size = self._epoch_size()
        full, rest = divmod(self._share(), self.batch_size)
        while first < len(self):
            rows, n = 1, rest
            if first < full:
                rows, n = min(max(1, at_once // self.batch_size), full - first), self.batch_size
            yield first, self._candidates(epoch, size, first * self.batch_size, rows * n).view(rows, n)
            first += rows

    def _candidates(self, epoch: int, n: int, start: int, length: int) -> Tensor:
        """Number ``start``, ``start + 1``, ... of this process's share of an epoch of ``n``."""
        # Strided as DistributedSampler has it; what is repeated goes to another process than the first time.
        position = torch.arange(start, start + length, dtype=torch.int64, device=self._device)
        position = (position * self.num_replicas + self.rank) % n
        if not self.shuffle:
            return position
        return ops.permute(position, n, draw_keys(self._generator("permutation", epoch)))

    def _generator(self, *key: object) -> torch.Generator:
        """One for each purpose, so that a run resumes anywhere without stored random state."""
        digest = blake2b(repr((self.seed, *key)).encode(), digest_size=8).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little"))

    def state_dict(self) -> dict[str, Any]:
        """How far training is: what the training loop was handed, not the prefetched."""
        return {
            "version": self._state_version,
            "epoch": self.epoch,
            "position": self._position,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
            "num_replicas": self.num_replicas,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; the next iteration hands out the rest of the epoch.

        Raises:
            KeyError: something is missing.
            ValueError: the state is of another version, or, within an epoch, of another number of samples,
                ``batch_size``, number of processes or ``shuffle``. Nothing is changed.
        """
        self._check_state(state)
        self.seed, self.epoch, self._position = state["seed"], state["epoch"], state["position"]
        self._current = self._restored = self._plain_loops = self._handed = None

    def _check_state(self, state: dict[str, Any]) -> None:
        checks.version(state, self._state_version)
        here = self.state_dict()
        for name in ("num_samples", "batch_size", "num_replicas", "shuffle"):
            if state["position"] and state[name] != here[name]:
                raise ValueError(
                    f"{name}: expected {state[name]}, with which this epoch was begun, got {here[name]}; "
                    "a state that is saved between two epochs fits any"
                )
