"""One training loop for every method, which can be stopped and goes on at any step, bit for bit."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .job import Job
from .methods import METHODS, Method, Task, epoch
from .problems import Problem
from .quantization import jacob, lsq


@dataclass
class Counts:
    """What a network computed: passes, and samples in them."""

    forwards: int = 0
    backwards: int = 0
    forward_samples: int = 0
    backward_samples: int = 0
    steps: int = 0

    def watch(self, model: nn.Module) -> None:
        """Counts from now on, in training mode."""
        model.register_forward_hook(self._forward)

    def _forward(self, model: nn.Module, args: Any, out: Any) -> None:
        if not model.training:
            return
        out = out[0] if isinstance(out, tuple) else out  # SimCC's is a pair
        self.forwards += 1
        self.forward_samples += len(out)
        if out.requires_grad:
            out.register_hook(lambda grad: self._backward(len(grad)))

    def _backward(self, samples: int) -> None:
        self.backwards += 1
        self.backward_samples += samples


@dataclass
class Progress:
    """What came out so far."""

    accuracy: list[float] = field(default_factory=list)  # of test images, after each epoch, in percent
    loss: list[float] = field(default_factory=list)  # of training, the mean of each epoch
    seconds: list[float] = field(default_factory=list)  # of training, of each epoch
    second_passes: int = 0


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


QUANTISERS: dict[str, Callable[[nn.Module], nn.Module]] = {"Jacob": jacob.quantize, "LSQ": lsq.quantize}


def _as_it_is(batch: Any) -> Any:
    return batch


class Training:
    """A job in training.

    Args:
        weights: the state of a network of the same kind, to begin with; of full precision.
        methods: what the job's method is one of.
    """

    def __init__(
        self,
        job: Job,
        problem: Problem,
        device: torch.device,
        weights: dict[str, Tensor] | None = None,
        methods: Mapping[str, Callable[[Task], Method]] = METHODS,
    ) -> None:
        torch.manual_seed(job.seed)
        self.job, self.problem, self.device = job, problem, device
        model = problem.network()
        if weights is not None:
            model.load_state_dict(weights)
        if job.quantiser is not None:
            model = QUANTISERS[job.quantiser](model)
        self.model = model.to(device)
        self.optimizer = problem.optimizer(self.model)
        task = Task(
            self.model,
            self.optimizer,
            problem.losses,
            len(problem.dataset),
            problem.classes,
            job.batch_size,
            job.epochs,
            job.seed,
            job.rho,
            device,
            job.settings,
        )
        self.method = methods[job.method](task)
        collate: Any = None if problem.workers or not hasattr(problem.dataset, "__getitems__") else _as_it_is
        self.loader = DataLoader(
            problem.dataset,
            batch_sampler=self.method.batches,
            collate_fn=collate,
            num_workers=problem.workers,
        )
        self.counts, self.progress = Counts(), Progress()
        self.counts.watch(self.model)
        self.epoch = 0
        self._reset()

    def steps(self) -> Iterator[Tensor | None]:
        """Trains from where it is; pauses after each step, and once more after each epoch.

        Yields the samples of the step, or None at an epoch's end. :meth:`state` can be saved at each pause.
        """
        while self.epoch < self.job.epochs:
            self.model.train()
            self.problem.dataset.epoch = self.epoch
            start, before = time.perf_counter(), self.counts.backwards
            for index, loss in epoch(self.method, self.loader, self.epoch, self._prepare):
                self._sum += loss.sum()
                self._seen += len(loss)
                self.counts.steps += 1
                self.progress.second_passes += self.counts.backwards - before > 1
                self._seconds += time.perf_counter() - start
                yield index
                start, before = time.perf_counter(), self.counts.backwards
            synchronize(self.device)
            self._seconds += time.perf_counter() - start
            self.progress.seconds.append(self._seconds)
            self.progress.loss.append(self._sum.item() / max(1, self._seen))
            self.model.eval()
            self.progress.accuracy.append(self.problem.score(self.model))
            self._reset()
            self.epoch += 1
            yield None

    def _reset(self) -> None:
        self._sum, self._seen, self._seconds = torch.zeros((), device=self.device), 0, 0.0

    def _prepare(self, loaded: Any) -> tuple[Any, Any]:
        batches = self.method.batches
        done = (self.epoch + (batches.state_dict()["position"] - 1) / len(batches)) / self.job.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = self.job.learning_rate * self.problem.factor(done)
        # By random numbers that depend only on the step, so that nothing has to be saved for them.
        generator = torch.Generator(self.device).manual_seed((self.job.seed << 40) + self.counts.steps)
        return self.problem.batch(loaded, generator)

    def state(self) -> dict[str, Any]:
        """All that the rest depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "parts": {name: part.state_dict() for name, part in self.method.parts.items()},
            "counts": vars(self.counts),
            "progress": vars(self.progress),
            "epoch": [self.epoch, self._sum, self._seen, self._seconds],
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, part in self.method.parts.items():
            part.load_state_dict(state["parts"][name])
        vars(self.counts).update(state["counts"])
        vars(self.progress).update(state["progress"])
        self.epoch, self._sum, self._seen, self._seconds = state["epoch"]
