"""The tables' speed column: how fast each method trains, in percent of SAM's speed.

On made images of the real shape, all methods in one process and in turns. Images are in memory on the device:
what the papers add to each step by loading and augmenting them on the CPU is not in it, so that figures are
nearer to the limits than theirs.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from ..data import in_memory
from ..harness import compare
from ..methods import METHODS
from ..networks import NETWORKS
from ..steps.epochs import CLASSES, STEPS, Epoch, steady
from . import show
from .jobs import SMALL, rows_of
from .published import Row

ROUNDS = 10


def measure(
    network: str, methods: Sequence[str], *, small: bool, batch_size: int, rounds: int, device: str
) -> list[dict[str, Any]]:
    """A line for each method: median and quartiles of SAM's time over the method's, and its limit."""
    made: Callable[[], nn.Module] = partial(
        NETWORKS[network], CLASSES, **(SMALL.get(network, {}) if small else {})
    )
    names = list(dict.fromkeys(["SAM", *methods]))
    data = in_memory(STEPS * batch_size, device)
    epochs = {name: Epoch(steady(name), made, data, batch_size, device) for name in names}
    seconds = compare(epochs, rounds=rounds, device=device)
    step = {n: [s / k for s, k in zip(seconds[n], epochs[n].steps[-rounds:], strict=True)] for n in names}
    # InfoBatch trains on fewer batches in an epoch: what counts is the time for all samples.
    share = {n: statistics.mean(epochs[n].steps[-rounds:]) / epochs["SAM"].steps[-1] for n in names}
    lines = []
    for name in methods:
        percents = [100 * a / (b * share[name]) for a, b in zip(step["SAM"], step[name], strict=True)]
        q1, median, q3 = statistics.quantiles(percents, n=4, method="inclusive")
        rate = sum(epochs[name].taken) / sum(epochs[name].steps)
        lines.append(
            {
                "network": network,
                "method": name,
                "SAM%": round(median, 1),
                "q1": round(q1, 1),
                "q3": round(q3, 1),
                "second passes": round(rate, 2),
                "limit": _limit(name, network, rate, share[name]),
                "ms": round(1e3 * statistics.median(step[name]), 2),
            }
        )
    return lines


def _limit(name: str, network: str, rate: float, share: float) -> float:
    """Of what was measured: with the second passes that were taken, and the batches that were left out."""
    if name.endswith(("Info", "Info*")):
        return round((100 if name.startswith("SAM") else 200) / share, 1)
    if name == "AUSAM+vSAM":
        return round(600 / (1.5 * (1 + rate)), 1)
    known = show.limit(Row(name, network, "", None, {}, {}))
    return round(200 / (1 + rate), 1) if known is None or name in ("RST", "G-RST", "AE-SAM") else known


def methods_of(table: str) -> list[str]:
    """Those of a table's rows, in its order, and whatever else there is."""
    own = [row.method for row in rows_of(table) if row.method in METHODS]
    return [name for name in dict.fromkeys([*own, *METHODS]) if name != "Adam"]


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The measured column beside the limits."""
    out = ["| Method | SAM% | limit | second passes | a step |", "|---|---:|---:|---:|---:|"]
    for found in lines:
        span = f"{found['SAM%']:.0f} ({found['q1']:.0f} to {found['q3']:.0f})"
        cells = [span, f"{found['limit']:.0f}", f"{found['second passes'] or ''}", f"{found['ms']} ms"]
        out.append(f"| {found['method']} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"
