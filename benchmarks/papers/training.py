"""One training loop for every method, which can be stopped and goes on at any step, bit for bit."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data import Images, augment, normalise
from ..methods import METHODS, Task
from ..networks import NETWORKS
from ..quantization import jacob, lsq
from .jobs import Job
from .published import recipe

Batch = tuple[Tensor, Tensor]


class InMemory(Dataset[Batch]):
    """Images as bytes on the device already: a batch is one indexing operation."""

    def __init__(self, images: Images, device: torch.device) -> None:
        self.x, self.y = images.x.to(device), images.y.to(device)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Batch:
        return self.x[index], self.y[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = torch.tensor(indices, device=self.x.device)
        return self.x[rows], self.y[rows]


@dataclass
class Counts:
    """What a network computed: passes, and samples in them."""

    forwards: int = 0
    backwards: int = 0
    forward_samples: int = 0
    backward_samples: int = 0
    steps: int = 0
    candidates: int = 0  # samples of whole batches

    def watch(self, model: nn.Module) -> None:
        """Counts from now on, in training mode."""
        model.register_forward_hook(self._forward)

    def _forward(self, model: nn.Module, args: Any, out: Tensor) -> None:
        if not model.training:
            return
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
    second_passes: int = 0
    seconds: float = 0.0  # of training


QUANTISERS: dict[str, Callable[[nn.Module], nn.Module]] = {"Jacob": jacob.quantize, "LSQ": lsq.quantize}


class Training:
    """A job in training.

    Args:
        weights: the state of a network of the same kind, to begin with; of full precision.
    """

    def __init__(
        self,
        job: Job,
        train: Images,
        test: Images,
        device: torch.device,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        torch.manual_seed(job.seed)
        self.job, self.device, self.train, self.test = job, device, train, test
        model = NETWORKS[job.network](train.classes, channels=train.x.shape[1], **job.small)
        if weights is not None:
            model.load_state_dict(weights)
        if job.quantiser is not None:
            model = QUANTISERS[job.quantiser](model)
        self.model = model.to(device)
        momentum = recipe("momentum", job.network)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), job.learning_rate, momentum, weight_decay=job.weight_decay
        )
        self.smoothing = recipe("label_smoothing", job.network)
        task = Task(
            self.model,
            self.optimizer,
            self._losses,
            len(train),
            train.classes,
            job.batch_size,
            job.epochs,
            job.seed,
            job.rho,
            device,
            job.settings,
        )
        self.method = METHODS[job.method](task)
        self.loader = DataLoader(
            InMemory(train, device), batch_sampler=self.method.batches, collate_fn=lambda batch: batch
        )
        self.counts, self.progress = Counts(), Progress()
        self.counts.watch(self.model)
        self.epoch, self._sum, self._seen = 0, 0.0, 0

    def _losses(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing)

    def steps(self) -> Iterator[None]:
        """Trains from where it is; pauses after each step, when :meth:`state` can be saved."""
        while self.epoch < self.job.epochs:
            self.model.train()
            self.method.begin(self.epoch)
            start = time.perf_counter()
            for index, batch in self.method.batches.indexed(self.loader):
                self._step(index, *batch)
                self.progress.seconds += time.perf_counter() - start
                yield
                start = time.perf_counter()
            self.progress.loss.append(self._sum / max(1, self._seen))
            self.progress.accuracy.append(self._accuracy())
            self._sum, self._seen = 0.0, 0
            self.epoch += 1
            yield

    def _step(self, index: Tensor, x: Tensor, y: Tensor) -> None:
        batches = self.method.batches
        done = (self.epoch + (batches.state_dict()["position"] - 1) / len(batches)) / self.job.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = self.job.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        before = self.counts.backwards
        loss = self.method.step(index, self._augmented(index, x), y)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.stepped()
        self.progress.second_passes += self.counts.backwards - before > 1
        self.counts.steps += 1
        self._sum += loss.sum().item()
        self._seen += len(loss)

    def _augmented(self, index: Tensor, x: Tensor) -> Tensor:
        """By random numbers of the step alone, so that nothing has to be saved for them."""
        seed = (self.job.seed << 40) + self.counts.steps
        generator = torch.Generator(self.device).manual_seed(seed)
        pad = recipe("crop_padding", self.job.network) if self.train.x.shape[-1] < 64 else 0
        side = recipe("cutout", self.job.network)["size"]
        return augment(x, self.train.mean, self.train.std, generator, pad=pad, cutout=side)

    @torch.no_grad()
    def _accuracy(self) -> float:
        self.model.eval()
        right = 0
        for x, y in zip(self.test.x.split(500), self.test.y.split(500), strict=True):
            logits = self.model(normalise(x.to(self.device), self.train.mean, self.train.std))
            right += int((logits.argmax(1).cpu() == y).sum())
        return 100 * right / len(self.test)

    def state(self) -> dict[str, Any]:
        """All that the rest depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "parts": {name: part.state_dict() for name, part in self.method.parts.items()},
            "counts": vars(self.counts),
            "progress": vars(self.progress),
            "epoch": [self.epoch, self._sum, self._seen],
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, part in self.method.parts.items():
            part.load_state_dict(state["parts"][name])
        vars(self.counts).update(state["counts"])
        vars(self.progress).update(state["progress"])
        self.epoch, self._sum, self._seen = state["epoch"]
