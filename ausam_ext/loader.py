"""Between sampler and training loop: what a loader draws from, what it must be, what gives batches their
index."""

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

if TYPE_CHECKING:
    from .sampler import AUSAMBatchSampler

Batch = TypeVar("Batch")
_AT_ONCE = 16  # batches that become lists together, which is faster


class Batches(Iterator[list[int]]):
    """The batches that are left of a sampler's epoch, with a state for loaders that store one."""

    def __init__(self, sampler: "AUSAMBatchSampler") -> None:
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
        for block in self.sampler._plan(self.epoch, self.position):
            host = block.cpu()  # the one copy to the host in a block
            rows = chain.from_iterable(part.tolist() for part in host.split(_AT_ONCE))
            for i, row in enumerate(rows):
                if drawn is not None:
                    drawn.append(block[i])
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
    """A ``DataLoader`` with an ``AUSAMBatchSampler``, that yields ``(index, batch)``.

    What :meth:`AUSAMBatchSampler.indexed` returns: see there. Each loop over it is one epoch, or what is left
    of one. A framework can have it as its loader: ``len()`` is the number of batches in an epoch, ``sampler``
    is what ``set_epoch()`` is called on, and ``state_dict()`` says how far the epoch is.

    Args:
        loader: made with ``batch_sampler=`` an ``AUSAMBatchSampler``.

    Raises:
        TypeError: it was not.
        ValueError: as :meth:`AUSAMBatchSampler.indexed`.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        sampler: Any = getattr(loader, "batch_sampler", None)
        if not hasattr(sampler, "indexed"):
            raise TypeError(
                f"loader: expected a DataLoader made with batch_sampler= an AUSAMBatchSampler, got {loader!r}"
            )
        check(loader, sampler, len(sampler.adlp))
        self.loader = loader
        self.sampler: AUSAMBatchSampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Batch]]:
        return self.sampler._loop(self.loader)

    def __repr__(self) -> str:
        return f"IndexedLoader({self.loader!r})"

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state_dict)


def check(loader: Any, sampler: Sampler[list[int]], num_samples: int) -> None:
    """Raises ``ValueError`` where ``loader`` does not take ``sampler``'s batches, of so many samples."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        raise ValueError(
            "loader: its data set is an IterableDataset, which takes no batch sampler. Let it yield each "
            "sample's index too, and choose within the loop with select()"
        )
    found = getattr(loader, "batch_sampler", None)
    if found is not sampler:
        raise ValueError(
            f"loader: expected a DataLoader made with batch_sampler= this sampler, got {loader!r} with "
            f"{found!r}. Where a framework put its own in place, keep it from that (Lightning: "
            "use_distributed_sampler=False; Accelerate: leave this loader out of prepare()): this sampler "
            "splits epochs among processes itself. For a loader that cannot take one, choose within the loop "
            "with select()"
        )
    dataset: Any = getattr(loader, "dataset", None)
    if hasattr(dataset, "__len__") and len(dataset) != num_samples:
        raise ValueError(
            f"loader: expected a data set of {num_samples} samples, as the table has, got {len(dataset)}"
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
