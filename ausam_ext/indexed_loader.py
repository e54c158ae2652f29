"""Between sampler and training loop: what a loader draws from, what it must be, what gives batches their
index."""

from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from .importance import HandedOut

if TYPE_CHECKING:
    from .planned import PlannedBatchSampler

Batch = TypeVar("Batch")
_AT_ONCE = 16  # batches that become lists together, which is faster


class Batches(Iterator[list[int]]):
    """The batches that are left of a sampler's epoch, with a state for loaders that store one."""

    def __init__(self, sampler: "PlannedBatchSampler") -> None:
        self.sampler = sampler
        self.epoch, self.position = sampler.epoch, sampler._position  # of the next batch that is drawn
        self._ended = False
        self._rows = self._draw()

    def __next__(self) -> list[int]:
        return next(self._rows)

    def _draw(self) -> Iterator[list[int]]:
        # Not before the first batch is asked for: a DataLoader may make two iterators, and use one.
        self.epoch, self.position = self.sampler.epoch, self.sampler._position
        drawn = self.sampler._begin()
        for block, choice in self.sampler._plan(self.epoch, self.position):
            host = block.cpu()  # the one copy to the host in a block
            rows = chain.from_iterable(part.tolist() for part in host.split(_AT_ONCE))
            for i, row in enumerate(rows):
                if drawn is not None:
                    drawn.append(HandedOut(block[i], choice, i))
                self.position += 1
                yield row
        self._ended = True
        self.sampler._end()

    def state_dict(self) -> dict[str, Any]:
        """The sampler's, as if the training loop had received all that was drawn, and not what else was."""
        epoch, position = (self.epoch + 1, 0) if self._ended else (self.epoch, self.position)
        return {**self.sampler.state_dict(), "epoch": epoch, "position": position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, in the sampler too."""
        self.sampler.load_state_dict(state)
        self.sampler._restored = self
        self.epoch, self.position = self.sampler.epoch, self.sampler._position
        self._ended, self._rows = False, self._draw()


class IndexedLoader(Generic[Batch]):
    """A ``DataLoader`` with a batch sampler of this package, that yields ``(index, batch)``.

    What the sampler's ``indexed()`` returns: see :meth:`AUSAMBatchSampler.indexed`. Each loop over it is one
    epoch, or what is left of one. A framework can have it as its loader: ``len()`` is the number of batches
    in an epoch, ``sampler`` is what ``set_epoch()`` is called on, and ``state_dict()`` says how far the epoch
    is.

    Args:
        loader: made with ``batch_sampler=`` such a sampler.

    Raises:
        TypeError: it was not.
        ValueError: as :meth:`AUSAMBatchSampler.indexed`.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        sampler: Any = getattr(loader, "batch_sampler", None)
        if not hasattr(sampler, "indexed"):
            raise TypeError(
                "loader: expected a DataLoader made with batch_sampler= one of this package, such as "
                f"AUSAMBatchSampler, got {loader!r}"
            )
        check(loader, sampler)
        self.loader = loader
        self.sampler: PlannedBatchSampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Batch]]:
        sampler, drawn = self.sampler, deque[HandedOut]()
        sampler._current = sampler._awaiting = drawn
        try:
            iterator = self._begin()
            for _ in range(given_already(iterator)):
                drawn.popleft()
                sampler._position += 1
            yield from self._paired(iterator, drawn)
        finally:
            if sampler._current is drawn:
                sampler._current = None
            if sampler._awaiting is drawn:
                sampler._awaiting = None

    def _begin(self) -> Iterator[Batch]:
        sampler = self.sampler
        begin_anew(self.loader)
        # Creating the iterator draws the seed of the workers from torch's generator. Lend it one: else a run
        # that resumes here would have drawn once more than one that never stopped.
        state = torch.get_rng_state()
        lent = sampler._generator("workers", sampler.epoch, sampler._position, sampler.rank)
        torch.set_rng_state(lent.get_state())
        on_cpu = torch.get_default_device().type == "cpu"  # another device's generator is not the one lent
        try:
            with nullcontext() if on_cpu else torch.device("cpu"):
                return iter(self.loader)
        finally:
            torch.set_rng_state(state)

    def _paired(self, iterator: Iterator[Batch], drawn: deque[HandedOut]) -> Iterator[tuple[Tensor, Batch]]:
        sampler, most = self.sampler, most_ahead(self.loader)
        for batch in iterator:
            if not 1 <= len(drawn) <= most:
                raise RuntimeError(
                    f"loader: gave a batch having drawn {len(drawn)} of this sampler, expected 1 to {most}; "
                    "what wraps it must not leave out, add or split batches"
                )
            if sampler._awaiting is drawn:  # the first: a loader with a state may have set the sampler's
                sampler._awaiting, sampler._restored, sampler._current = None, None, drawn
            sampler._position += 1
            last = sampler._position == len(sampler)
            sampler._handed = drawn.popleft()
            yield sampler._handed.samples, batch
            if sampler._current is not drawn:
                if last:
                    return
                raise RuntimeError(
                    "indexed(): since this loop's last batch another one began, or the epoch or the state "
                    "was set; end or leave a loop first"
                )
        if sampler._position < len(sampler):
            raise RuntimeError(
                f"loader: ended after batch {sampler._position} of the {len(sampler)} of this epoch"
            )
        sampler.set_epoch(sampler.epoch + 1)

    def __repr__(self) -> str:
        return f"IndexedLoader({self.loader!r})"

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state_dict)


def check(loader: Any, sampler: "PlannedBatchSampler") -> None:
    """Raises ``ValueError`` if ``loader`` does not take ``sampler``'s batches, of so many samples."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        raise ValueError(
            f"loader: its data set is an IterableDataset, which takes no batch sampler.{sampler._instead}"
        )
    found = getattr(loader, "batch_sampler", None)
    if found is not sampler:
        raise ValueError(
            f"loader: expected a DataLoader made with batch_sampler= this sampler, got {loader!r} with "
            f"{found!r}. If a framework put its own there, keep it from that (Lightning: "
            "use_distributed_sampler=False; Accelerate: leave this loader out of prepare()): this sampler "
            f"splits epochs among processes itself.{sampler._instead}"
        )
    dataset: Any = getattr(loader, "dataset", None)
    if hasattr(dataset, "__len__") and len(dataset) != sampler.num_samples:
        raise ValueError(
            f"loader: expected a data set of {sampler.num_samples} samples, as the table has, "
            f"got {len(dataset)}"
        )
    if not getattr(loader, "in_order", True):
        raise ValueError(
            "loader: expected in_order=True, got False, which would pair batches with others' index"
        )


def most_ahead(loader: Any) -> int:
    """Batches that a loader may have drawn from its sampler and not given out, when it gives one."""
    prefetched = getattr(loader, "num_workers", 0) * (getattr(loader, "prefetch_factor", 0) or 0)
    return prefetched + 2  # the one that it gives, and one for a wrapper that looks ahead


def begin_anew(loader: Any) -> None:
    """If torchdata's loader is asked for its state before it is iterated, it makes an iterator for that and
    keeps it, whose workers have drawn already: let it make another."""
    if getattr(loader, "_initial_iter_for_state_dict", False):
        loader.load_state_dict(loader.state_dict())


def given_already(iterator: Any) -> int:
    """Batches that a loader's new iterator gave before anyone asked: torchdata's, restored to a place between
    two of its workers' snapshots, takes those up to there and drops them."""
    return getattr(iterator, "_rcvd_idx", 0)
