"""The columns of ``python -m benchmarks.steps``: SGD, SAM, AUSAM and vSAM, and what each is compared with.

The ideal of AUSAM is plain SAM on batches of ``alpha * K`` samples, that of vSAM at a rate ``p`` of second
passes is ``(1 - p) * SGD + p * SAM``.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ausam_ext import VSAM

from ..harness import graph
from ..methods import METHODS, Method, Task, TwoPasses
from .epochs import AT_ONCE, STEPS, Shuffled, scored, steady
from .measure import GRAPH, Column


def plain(name: str, share: float = 1.0) -> Callable[[Task], Method]:
    """A method as one writes it without this package's sampler, on a ``share`` of each batch."""

    def make(task: Task) -> Method:
        batches = Shuffled(task.size, int(share * task.batch_size + 1e-6))
        return METHODS[name](replace(task, losses=F.cross_entropy, batches=batches))

    return make


def at_rate(rate: float, alpha: float | None = None) -> Callable[[Task], Method]:
    """vSAM at a fixed rate, with AUSAM if there is an ``alpha``.

    An epoch is one window, so that each takes the same number of second passes.
    """

    def make(task: Task) -> Method:
        sam = VSAM(task.model, task.rho, alpha=0, window=STEPS, initial_rate=rate, warmup_steps=0)
        if alpha is not None:
            return scored(TwoPasses(task, sam, "loss", alpha=alpha, **AT_ONCE))
        batches = Shuffled(task.size, task.batch_size)
        return TwoPasses(replace(task, losses=F.cross_entropy, batches=batches), sam)

    return make


class Around(Method):
    """Another method, with something about its steps."""

    def __init__(self, make: Callable[[Task], Method], task: Task) -> None:
        self.task, self.method = task, make(task)
        self.sam, self.batches = self.method.sam, self.method.batches

    def begin(self, epoch: int) -> None:
        self.method.begin(epoch)


class InLoop(Around):
    """AUSAM that is given whole batches and chooses among them."""

    def __init__(self, make: Callable[[Task], Method], task: Task) -> None:
        super().__init__(make, task)
        self.batches = Shuffled(task.size, task.batch_size)

    def train(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        index = index.to(self.task.device, non_blocking=True)
        keep = self.method.batches.select(index)
        return self.method.train(index[keep], x[keep], y[keep])


class Captured(Around):
    """SGD, SAM, AUSAM and vSAM, each step replayed from a CUDA graph; vSAM has one for each kind of step."""

    def __init__(self, make: Callable[[Task], Method], task: Task) -> None:
        super().__init__(make, task)
        self.graphs: dict[bool, Callable[[], None]] = {}
        self.losses: dict[bool, Tensor] = {}

    def train(self, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        batch = [t.to(self.task.device, non_blocking=True) for t in (index, x, y)]
        if not self.graphs:
            self._capture(batch)
        for held, new in zip(self.held, batch, strict=True):
            held.copy_(new)
        return self.losses[self._replay()]

    def _capture(self, batch: list[Tensor]) -> None:
        self.held = [t.clone() for t in batch]
        vsam = isinstance(self.sam, VSAM)
        # vSAM's one pass reads the PSF where the replay of its two leaves it.
        for second in (True, False) if vsam else (self.sam is not None,):
            self.graphs[second] = graph(partial(self._step, second))
            self.graphs[second]()
        while vsam and self.sam.state_dict()["progress"][1]:
            self._replay()  # to the end of the window, so that each epoch has one

    def _step(self, second: bool) -> None:
        method, (index, x, y) = self.method, self.held
        loss = method.differentiate(x, y)
        if second:
            with self.sam.perturbed():
                loss_perturbed = method.differentiate(x, y)
            method.record(index, loss, loss_perturbed)
        elif self.sam is not None:
            self.sam.reuse_()
        method.task.optimizer.step()
        method.task.optimizer.zero_grad()
        self.losses[second] = loss

    def _replay(self) -> bool:
        """The step that is due; returns whether it has a second pass."""
        vsam = isinstance(self.sam, VSAM)
        second = self.sam.decide() if vsam else self.sam is not None
        self.graphs[second]()
        if vsam:
            self.sam.replayed()
        return second


def columns(alphas: Iterable[float], rates: Iterable[float], captured: bool = False) -> dict[str, Column]:
    """SGD, SAM, AUSAM, vSAM and both, each after what its ideal is made of."""
    made = {name: Column(plain(name), quoted=name) for name in ("SGD", "SAM")}
    for alpha in alphas:
        ideal, ausam = f"SAM of {alpha} K", steady(f"AUSAM-{alpha}")
        made[ideal] = Column(plain("SAM", alpha), row=False)
        made[f"AUSAM-{alpha}"] = Column(ausam, (ideal,), quoted=alpha)
        if not captured:
            note = "the whole batch is loaded, and the choice copied out of it"
            in_loop = Column(partial(InLoop, ausam), (ideal,), quoted=alpha, note=note, loads_more=True)
            made[f"AUSAM-{alpha} in the loop"] = in_loop
    for rate in rates:
        made[f"vSAM-{rate}"] = Column(at_rate(rate), ("SGD", "SAM"), quoted="vSAM")
    made["SGD of 0.5 K"] = Column(plain("SGD", 0.5), row=False)
    made["AUSAM-0.5 + vSAM-0.3"] = Column(at_rate(0.3, 0.5), ("SGD of 0.5 K", "SAM of 0.5 K"))
    if not captured:
        return made
    return {
        name + GRAPH: column._replace(
            make=partial(Captured, column.make), ideal=tuple(part + GRAPH for part in column.ideal)
        )
        for name, column in made.items()
    }


ALL = columns([0.4, 0.5, 0.6, 0.7], [0.1, 0.3, 0.5])
