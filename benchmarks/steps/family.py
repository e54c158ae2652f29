"""A step of each method of `ausam_ext.baselines`, beside the passes that it cannot do without.

Part of `python -m benchmarks.steps`. The ideal of a method that takes its second pass at times is SGD's and
SAM's step, in the proportion in which it took both; that of K-SAM is SAM on the samples that it keeps, after
a forward pass of all. That of another is a loop that does the same passes over as many samples, of the same
loss, and nothing else.
"""

from collections.abc import Callable

from torch import nn

from ..harness import Row, compare, row
from ..methods import METHODS, Method, Task
from .passes import Epoch, Passes, steady

IDEAL = "ideal"
SGD, SAM = "SGD", "SAM"
MIX = "mix"  # of SGD and SAM
FAMILY = {  # and what each is compared with
    "SAM-5": MIX,
    "RST": MIX,
    "G-RST": MIX,
    "AE-SAM": MIX,
    "LookSAM-5": MIX,
    "ESAM": "passes of ESAM",
    "K-SAM": "SAM on half",
    "Momentum-SAM": SGD,
    "SAF": "SGD with a term",
    "MESA": "passes of MESA",
    "SGD+Info": "weighted SGD",
}
IDEALS: dict[str, Callable[[Task], Method]] = {
    SGD: METHODS[SGD],
    SAM: METHODS[SAM],
    "passes of ESAM": lambda task: Passes(task, "weights", "forward", "half"),
    "SAM on half": lambda task: Passes(task, "forward", "half", sam=True),
    "passes of MESA": lambda task: Passes(task, "whole", "other", loss="term"),
    "SGD with a term": lambda task: Passes(task, "whole", loss="term"),
    "weighted SGD": lambda task: Passes(task, "whole", loss="weighted"),
}
NOTES = {  # what a method does beside its passes
    "LookSAM-5": "the norm of the gradient in every step, the projection in every fifth",
    "ESAM": "two choices, of tensors and of samples, and the copy of the weights",
    "Momentum-SAM": "the norm of the momentum, the copy of the weights and their way back",
    "SAF": "the table is written and read",
    "MESA": "the average is updated",
    "SGD+Info": "weights and scores are looked up; the plan of an epoch is shared among 7 to 8 steps here",
}


def measure(
    name: str,
    network: Callable[[], nn.Module],
    *,
    batch_size: int,
    rounds: int,
    instances: int,
    device: str,
) -> list[Row]:
    """The rows of one network, in seconds per step. Each instance is made anew, in another order."""
    chosen = {**IDEALS, **{what: steady(what) for what in FAMILY}}
    seconds: dict[str, list[float]] = {what: [] for what in chosen}
    rates: dict[str, list[float]] = {what: [] for what in chosen}
    for i in range(instances):
        first = i * len(chosen) // instances
        order = [*chosen][first:] + [*chosen][:first]
        epochs = {what: Epoch(chosen[what], network, batch_size, device) for what in order}
        timed = compare(epochs, rounds=rounds, device=device)
        for what, epoch in epochs.items():
            steps, taken = epoch.steps[-rounds:], epoch.taken[-rounds:]
            seconds[what] += [s / n for s, n in zip(timed[what], steps, strict=True)]
            rates[what] += [t / n for t, n in zip(taken, steps, strict=True)]
    rows = []
    for what, ideal in FAMILY.items():
        columns = {what: seconds[what], SAM: seconds[SAM]}
        if ideal == MIX:
            parts = zip(rates[what], seconds[SGD], seconds[SAM], strict=True)
            columns[IDEAL] = [(1 - p) * sgd + p * sam for p, sgd, sam in parts]
        else:
            columns[IDEAL] = seconds[ideal]
        size, note = f"{name}, {batch_size} from memory", NOTES.get(what)
        rows.append(row("family", what, size, columns, against=IDEAL, target=0.97, note=note))
    return rows
