"""Epochs that are timed: a user's loop, with methods as they are in the middle of a long run."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from ..data import InMemory
from ..methods import METHODS, Method, Task, epoch

STEPS = 10  # of an epoch
CLASSES = 10

# Settings with which a few steps cost what those of a long run do on average: terms and choices from the
# first epoch on, second passes at the rate that the papers' runs have.
_FROM_THE_START = {"start_epoch": -1}
AT_ONCE = {"full_epochs": 0, "warmup_epochs": 0}
_RATE = {"alpha": 0.0, "initial_rate": 0.34, "sam_epochs": 0}
STEADY: dict[str, dict[str, Any]] = {
    "AE-SAM": {"total_steps": 1, "lambda1": 0.0},
    "SAF": {"delay": 1, **_FROM_THE_START},
    "MESA": _FROM_THE_START,
    **{name: {"drop_last": True} for name in ("SGD+Info", "SAM+Info*", "SAM+Info")},
    **dict.fromkeys(("vSAM", "vSAM-A"), _RATE),
    **{name: AT_ONCE for name in METHODS if name.startswith("AUSAM-")},
    "AUSAM+vSAM": {**AT_ONCE, "sam_epochs": 0},
}


def steady(name: str) -> Callable[[Task], Method]:
    """A method as in the middle of a long run."""
    return lambda task: scored(METHODS[name](replace(task, settings=STEADY.get(name, {}))))


def scored(method: Method) -> Method:
    """If it chooses by scores, no sample is new to it, and the choice follows them."""
    if getattr(method, "score", None) is not None:
        task = method.task
        method.adlp.update(torch.arange(task.size), *torch.rand(2, task.size, device=task.device))
    return method


class Shuffled(BatchSampler):
    """``STEPS`` batches as torch deals them, without a table or a plan; of a data set that yields indices."""

    def __init__(self, samples: int, batch_size: int) -> None:
        order = RandomSampler(range(samples), num_samples=STEPS * batch_size)
        super().__init__(order, batch_size, drop_last=False)

    def set_epoch(self, number: int) -> None:
        """Every epoch is shuffled anew."""

    def indexed(self, loader: DataLoader) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        return ((index, (x, y)) for x, y, index in loader)


class Epoch:
    """Trains an epoch when called; ``steps`` and ``taken`` say how many steps each had, and second passes."""

    def __init__(
        self,
        make: Callable[[Task], Method],
        network: Callable[[], nn.Module],
        data: Dataset,
        batch_size: int,
        device: str,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.model = device, network().to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        task = Task(
            self.model,
            self.optimizer,
            lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
            STEPS * batch_size,
            CLASSES,
            batch_size,
            epochs=1 << 20,
            seed=0,
            rho=0.05,
            device=torch.device(device),
        )
        self.method = make(task)
        in_memory = isinstance(data, InMemory)
        workers = 0 if in_memory or device == "cpu" else 8
        self.loader = DataLoader(
            data,
            batch_sampler=self.method.batches,
            collate_fn=(lambda batch: batch) if in_memory else None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=workers > 0,
        )
        self.number = count()
        self.steps: list[int] = []
        self.taken: list[int] = []

    def __call__(self) -> None:
        steps = taken = 0
        for _ in epoch(self.method, self.loader, next(self.number), self._on_device):
            steps += 1
            taken += bool(getattr(self.method.sam, "sampled", False))
        self.steps.append(steps)
        self.taken.append(taken)

    def _on_device(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return tuple(t.to(self.device, non_blocking=True) for t in batch[:2])
