"""A step of each method of `ausam_ext.baselines`, beside the passes that it cannot do without.

Part of `python -m benchmarks.steps`. The ideal of a method that takes its second pass at times is SGD's and
SAM's step, in the proportion in which it took both; that of K-SAM is SAM on the samples that it keeps, after
a forward pass of all. That of another is a loop that does the same passes over as many samples, of the same
loss, and nothing else.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ausam_ext import SAM
from ausam_ext.baselines import (
    AESAM,
    ESAM,
    KSAM,
    MESA,
    SAF,
    InfoBatchSampler,
    LookSAM,
    MomentumSAM,
    PeriodicSAM,
    RandomizedSAM,
)

from .data.made import Batch
from .harness import Row, compare, row
from .passes import CLASSES, Epoch, Method, Step, passes, plain

IDEAL = "ideal"


def second_pass_by(make: Callable[[nn.Module], Any]) -> Method:
    """SAM, or a method that takes its second pass at times."""

    def method(epoch: Epoch) -> Step:
        sam = make(epoch.model)

        def step(x: Tensor, y: Tensor, index: Tensor) -> bool:
            def closure() -> Tensor:
                epoch.optimizer.zero_grad()
                loss = F.cross_entropy(epoch.model(x), y)
                loss.backward()
                return loss

            return sam.backward(closure)[1] is not None

        return step

    return method


def choosing(make: Callable[[nn.Module], Any]) -> Method:
    """A method that chooses among the batch."""

    def method(epoch: Epoch) -> Step:
        sam = make(epoch.model)

        def step(x: Tensor, y: Tensor, index: Tensor) -> None:
            def losses(positions: Tensor | None) -> Tensor:
                chosen, labels = (x, y) if positions is None else (x[positions], y[positions])
                return F.cross_entropy(epoch.model(chosen), labels, reduction="none")

            sam.backward(losses)

        return step

    return method


def momentum(epoch: Epoch) -> Step:
    msam = MomentumSAM(epoch.optimizer)

    def step(x: Tensor, y: Tensor, index: Tensor) -> None:
        with msam.perturbed():
            F.cross_entropy(epoch.model(x), y).backward()

    return step


def saf(epoch: Epoch) -> Step:
    penalties = SAF(len(epoch.data), CLASSES, delay=1, start_epoch=0, device=epoch.device)
    load = epoch.load

    def loaded() -> Any:
        penalties.set_epoch(next(epoch.number))
        return load()

    epoch.load = loaded

    def step(x: Tensor, y: Tensor, index: Tensor) -> None:
        logits = epoch.model(x)
        (F.cross_entropy(logits, y) + penalties.penalty(index, logits)).backward()

    return step


def mesa(epoch: Epoch) -> Step:
    penalties = MESA(epoch.model, start_epoch=0)
    penalties.set_epoch(1)
    epoch.optimizer.register_step_post_hook(lambda *_: penalties.update())

    def step(x: Tensor, y: Tensor, index: Tensor) -> None:
        logits = epoch.model(x)
        (F.cross_entropy(logits, y) + penalties.penalty(logits, x)).backward()

    return step


def infobatch(epoch: Epoch) -> Step:
    batches = InfoBatchSampler(len(epoch.data), epoch.size, epochs=1 << 20, drop_last=True)
    loader: DataLoader[Batch] = DataLoader(epoch.data, batch_sampler=batches, collate_fn=lambda batch: batch)

    def load() -> Iterator[Batch]:
        batches.set_epoch(next(epoch.number))
        return ((x, y, index) for index, (x, y, _) in batches.indexed(loader))

    epoch.load = load

    def step(x: Tensor, y: Tensor, index: Tensor) -> None:
        loss = F.cross_entropy(epoch.model(x), y, reduction="none")
        (loss * batches.weights(index)).mean().backward()
        batches.update(index, loss)

    return step


SGD, SAM_ITSELF = "SGD", "SAM"
MIX = "mix"  # of SGD and SAM
METHODS: dict[str, tuple[Method, str]] = {  # and what its ideal is
    "SAM-5": (second_pass_by(PeriodicSAM), MIX),
    "RST": (second_pass_by(RandomizedSAM), MIX),
    "G-RST, weight 2": (second_pass_by(lambda m: RandomizedSAM(m, weight=2.0)), MIX),
    "AE-SAM": (second_pass_by(lambda m: AESAM(m, total_steps=1, lambda1=0.0)), MIX),
    "LookSAM-5": (second_pass_by(LookSAM), MIX),
    "ESAM": (choosing(ESAM), "passes of ESAM"),
    "K-SAM": (choosing(KSAM), "SAM on half"),
    "Momentum-SAM": (momentum, SGD),
    "SAF": (saf, "SGD with a term"),
    "MESA": (mesa, "passes of MESA"),
    "InfoBatch": (infobatch, "weighted SGD"),
}
NOTES = {  # what a method does beside its passes
    "LookSAM-5": "the norm of the gradient in every step, the projection in every fifth",
    "ESAM": "two choices, of tensors and of samples, and the copy of the weights",
    "Momentum-SAM": "the norm of the momentum, the copy of the weights and their way back",
    "SAF": "the table is written and read",
    "MESA": "the average is updated",
    "InfoBatch": "weights and scores are looked up; the plan of an epoch is shared among 7 to 8 steps here",
}
IDEALS: dict[str, Method] = {
    SGD: plain,
    SAM_ITSELF: second_pass_by(SAM),
    "passes of ESAM": passes("weights", "forward", "half"),
    "SAM on half": passes("forward", "half", sam=True),
    "passes of MESA": passes("whole", "other", loss="term"),
    "SGD with a term": passes("whole", loss="term"),
    "weighted SGD": passes("whole", loss="weighted"),
}


def measure(
    name: str,
    network: Callable[[], nn.Module],
    *,
    batch_size: int,
    rounds: int,
    instances: int,
    device: str,
    methods: dict[str, tuple[Method, str]] = METHODS,
) -> list[Row]:
    """The rows of one network, in seconds per step. Each instance is made anew, in another order."""
    chosen = {**IDEALS, **{what: method for what, (method, _) in methods.items()}}
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
    for method, (_, ideal) in methods.items():
        columns = {method: seconds[method], SAM_ITSELF: seconds[SAM_ITSELF]}
        if ideal == MIX:
            parts = zip(rates[method], seconds[SGD], seconds[SAM_ITSELF], strict=True)
            columns[IDEAL] = [(1 - p) * sgd + p * sam for p, sgd, sam in parts]
        else:
            columns[IDEAL] = seconds[ideal]
        rows.append(
            row(
                "family",
                method,
                f"{name}, {batch_size} from memory",
                columns,
                against=IDEAL,
                target=0.97,
                note=NOTES.get(method),
            )
        )
    return rows
