"""What a loader must be, so that its batches are those that a sampler gave it, in their order."""

from typing import Any

from torch.utils.data import IterableDataset, Sampler


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
