"""The rows of a network: its methods in turns, each beside SAM and beside its ideal."""

import warnings
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import nn

from ..data import Encoded, in_memory
from ..harness import Row, compare, row
from ..methods import Method, Task
from ..papers.published import quote
from .epochs import STEPS, Epoch

BATCH_SIZE = 128  # of the papers
IDEAL = "ideal"
GRAPH = ", graph"  # ends the names of columns whose steps are captured


class Column(NamedTuple):
    """What is timed, and compared with what.

    Attributes:
        ideal: the column that costs what it should cost at best; or SGD's and SAM's, of which it takes the
            steps in its own proportion.
        row: whether it gets a row, or is there for those of others.
        quoted: what the papers call it.
        note: what it does beside its passes.
        loads_more: than its ideal: from files it has no target.
    """

    make: Callable[[Task], Method]
    ideal: tuple[str, ...] = ()
    row: bool = True
    quoted: str | float | None = None
    note: str | None = None
    loads_more: bool = False


def synchronizations(epoch: Callable[[], None]) -> int:
    """How often the host waits for the GPU in an epoch."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


def measure(
    suite: str,
    name: str,
    network: Callable[[], nn.Module],
    columns: dict[str, Column],
    *,
    rounds: int,
    device: str,
    encoded: bool = False,
    batch_size: int = BATCH_SIZE,
    instances: int = 1,
) -> list[Row]:
    """In seconds per step; the ratio to SAM is SAM%. One of ``columns`` is SAM.

    ``rounds`` of each of ``instances``: on the CPU two of the same method differ by up to 3 %, as their
    memory lies elsewhere and others had their turn before. So each time they are made in another order.
    """
    samples = STEPS * batch_size
    data = Encoded(samples) if encoded else in_memory(samples, device)
    seconds: dict[str, list[float]] = {what: [] for what in columns}
    rates: dict[str, list[float]] = {what: [] for what in columns}
    for i in range(instances):
        first = i * len(columns) // instances
        order = [*columns][first:] + [*columns][:first]
        epochs = {what: Epoch(columns[what].make, network, data, batch_size, device) for what in order}
        timed = compare(epochs, rounds=rounds, device=device)
        for what, epoch in epochs.items():
            steps, taken = epoch.steps[-rounds:], epoch.taken[-rounds:]
            seconds[what] += [s / n for s, n in zip(timed[what], steps, strict=True)]
            rates[what] += [t / n for t, n in zip(taken, steps, strict=True)]
    sam = next(what for what in columns if what.removesuffix(GRAPH) == "SAM")
    rows = []
    for what, column in columns.items():
        if not column.row:
            continue
        compared = {what: seconds[what]}
        if what != sam:
            compared["SAM"] = seconds[sam]
        if len(column.ideal) == 2:
            parts = zip(rates[what], *(seconds[part] for part in column.ideal), strict=True)
            compared[IDEAL] = [(1 - p) * one + p * two for p, one, two in parts]
        elif column.ideal:
            compared[IDEAL] = seconds[column.ideal[0]]
        facts = {"images_per_second": round(batch_size / median(seconds[what]), 1)}
        if device == "cuda" and not what.endswith(GRAPH):
            facts["synchronizations"] = synchronizations(epochs[what])
        aimed = column.ideal and not (column.loads_more and encoded)
        rows.append(
            row(
                suite,
                what,
                f"{name}, {batch_size} {'PNG files' if encoded else 'from memory'}",
                compared,
                against=IDEAL if column.ideal else None,
                target=(0.98 if device == "cuda" else 0.97) if aimed else None,
                note=column.note,
                papers=quote(name, column.quoted) if column.quoted is not None else None,
                **facts,
            )
        )
    return rows
