"""Steps of SGD, SAM, AUSAM, vSAM and both, beside the ideal.

The ideal of AUSAM is plain SAM on batches of ``alpha * K`` samples, that of vSAM at a rate ``p`` of second
passes is ``(1 - p) * SGD + p * SAM``.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler

from ..data import Encoded, InMemory
from ..harness import Row, compare, graph, row
from ..papers.published import quote

BATCH_SIZE = 128  # of the papers
IDEAL = "ideal"
STEPS = 10  # of an epoch; one window of vSAM, so that each epoch takes the same number of second passes


@dataclass(frozen=True)
class Method:
    """What sets a method apart.

    Attributes:
        rate: share of the steps that take a second pass: 0 for SGD, 1 for SAM, between for vSAM.
        alpha: AUSAM's share of a batch that is kept; None for a method that trains on whole batches.
        in_loop: choose with ``select()`` from a batch that is loaded, not before.
        share: of ``BATCH_SIZE``, how large whole batches are: below 1 for the ideal of a method that chooses.
        captured: replay each step from a CUDA graph.
    """

    rate: float = 1.0
    alpha: float | None = None
    in_loop: bool = False
    share: float = 1.0
    captured: bool = False

    @property
    def name(self) -> str:
        parts = [f"AUSAM-{self.alpha}"] if self.alpha else []
        parts += [f"vSAM-{self.rate}"] if 0 < self.rate < 1 else []
        name = " + ".join(parts) or ("SAM" if self.rate else "SGD")
        name += f" of {self.share} K" if self.share < 1 else ""
        return name + (" in the loop" if self.in_loop else "") + (", graph" if self.captured else "")


def methods(alphas: Iterable[float], rates: Iterable[float], captured: bool = False) -> list[Method]:
    """SGD, SAM, AUSAM, vSAM and both, each after what its ideal is made of."""
    plain = [Method(0.0), Method()]
    ausam: list[Method] = []
    for alpha in alphas:
        ausam += [Method(share=alpha), Method(alpha=alpha)]
        ausam += [] if captured else [Method(alpha=alpha, in_loop=True)]
    both = [Method(0.0, share=0.5), Method(0.3, alpha=0.5)]
    chosen = [*plain, *ausam, *(Method(rate) for rate in rates), *both]
    return [Method(m.rate, m.alpha, m.in_loop, m.share, captured) for m in chosen]


ALL = methods([0.4, 0.5, 0.6, 0.7], [0.1, 0.3, 0.5])


class Epoch:
    """Trains ``STEPS`` steps when called, as a user would; ``rate`` is the share that took a second pass."""

    def __init__(
        self, method: Method, network: Callable[[], nn.Module], data: Dataset, device: str, batch_size: int
    ) -> None:
        torch.manual_seed(0)
        self.method, self.device = method, device
        self.model = network().to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        self.sam = SAM(self.model)
        if 0 < method.rate < 1:
            self.sam = VSAM(
                self.model, alpha=0, window=STEPS, initial_samples=method.rate * STEPS, warmup_steps=0
            )
        self.taken = self.steps = 0
        self.graphs: dict[bool, Callable[[], None]] = {}

        in_memory = isinstance(data, InMemory)
        workers = 0 if in_memory or device == "cpu" else 8
        loading = {
            "collate_fn": (lambda batch: batch) if in_memory else None,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": workers > 0,
        }
        self.epochs = count()
        if method.alpha:
            samples = STEPS * batch_size
            self.adlp = ADLP(samples, device)
            losses = torch.rand(2, samples, device=device)
            self.adlp.update(torch.arange(samples), *losses)  # none is new: the choice follows the scores
            self.batches = AUSAMBatchSampler(
                self.adlp, batch_size, method.alpha, full_epochs=0, warmup_epochs=0
            )
        if method.alpha and not method.in_loop:
            self.loader = DataLoader(data, batch_sampler=self.batches, **loading)
        else:
            size = int(method.share * batch_size + 1e-6)
            order = RandomSampler(data, num_samples=STEPS * size)
            self.loader = DataLoader(data, size, sampler=order, **loading)

    def __call__(self) -> None:
        for index, x, y in self._load():
            second = self._decide()
            if self.method.captured:
                self._replay(second, index, x, y)
            else:
                (self._two_passes if second else self._one_pass)(index, x, y)
            self.taken += second
            self.steps += 1

    @property
    def rate(self) -> float:
        return self.taken / self.steps

    def _load(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        if self.method.alpha:
            self.batches.set_epoch(next(self.epochs))
        if self.method.alpha and not self.method.in_loop:
            loaded = ((index, x, y) for index, (x, y, _) in self.batches.indexed(self.loader))
        else:
            loaded = ((index, x, y) for x, y, index in self.loader)
        for batch in loaded:
            index, x, y = (t.to(self.device, non_blocking=True) for t in batch)
            if self.method.in_loop:
                keep = self.batches.select(index)
                index, x, y = index[keep], x[keep], y[keep]
            yield index, x, y

    def _decide(self) -> bool:
        return self.sam.decide() if isinstance(self.sam, VSAM) else self.method.rate == 1

    def _pass(self, x: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(self.model(x), y, reduction="none" if self.method.alpha else "mean")
        (losses.mean() if self.method.alpha else losses).backward()
        return losses

    def _two_passes(self, index: Tensor, x: Tensor, y: Tensor) -> None:
        losses = self._pass(x, y)
        with self.sam.perturbed():
            losses_perturbed = self._pass(x, y)
        if self.method.alpha:
            self.adlp.update(index, losses, losses_perturbed)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _one_pass(self, index: Tensor, x: Tensor, y: Tensor) -> None:
        self._pass(x, y)
        if isinstance(self.sam, VSAM):
            self.sam.reuse_()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _replay(self, second: bool, *batch: Tensor) -> None:
        if not self.graphs:
            self.inputs = [t.clone() for t in batch]
            # vSAM's one pass reads the PSF where the replay of its two leaves it.
            for two in {0: [False], 1: [True]}.get(self.method.rate, [True, False]):
                step = self._two_passes if two else self._one_pass
                self.graphs[two] = graph(lambda step=step: step(*self.inputs))
                self.graphs[two]()
            while isinstance(self.sam, VSAM) and self.sam.state_dict()["progress"][1]:
                self.graphs[self.sam.decide()]()  # to the end of the window, so that each epoch has one
                self.sam.replayed()
        for t, new in zip(self.inputs, batch, strict=True):
            t.copy_(new)
        self.graphs[second]()
        if isinstance(self.sam, VSAM):
            self.sam.replayed()


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
    name: str,
    network: Callable[[], nn.Module],
    chosen: Sequence[Method],
    *,
    encoded: bool,
    rounds: int,
    device: str,
    batch_size: int = BATCH_SIZE,
    instances: int = 1,
) -> list[Row]:
    """The rows of one network, in seconds per step; the ratio to SAM is SAM%.

    ``rounds`` of each of ``instances``: on the CPU two of the same method differ by up to 3 %, as their
    memory lies elsewhere and others had their turn before. So each time they are made in another order.
    """
    samples = STEPS * batch_size
    data = Encoded(samples) if encoded else InMemory(samples, device)
    seconds: dict[Method, list[float]] = {m: [] for m in chosen}
    for i in range(instances):
        first = i * len(chosen) // instances
        epochs = {m: Epoch(m, network, data, device, batch_size) for m in (*chosen[first:], *chosen[:first])}
        timed = compare({m.name: epoch for m, epoch in epochs.items()}, rounds=rounds, device=device)
        for m in chosen:
            seconds[m] += [s / STEPS for s in timed[m.name]]
    rows = []
    for m in chosen:
        if m.share < 1:
            continue
        columns = {m.name: seconds[m]}
        if m != (sam := Method(captured=m.captured)):
            columns["SAM"] = seconds[sam]
        sgd, sam = (Method(rate, share=m.alpha or 1.0, captured=m.captured) for rate in (0.0, 1.0))
        p = epochs[m].rate
        mixed = 0 < m.rate < 1
        if mixed:
            columns[IDEAL] = [(1 - p) * a + p * b for a, b in zip(seconds[sgd], seconds[sam], strict=True)]
        elif m.alpha:
            columns[IDEAL] = seconds[sam]
        whole = m.in_loop and encoded  # batches are loaded whole, as in the papers: the ideal loads a part
        facts = {"images_per_second": round(batch_size / median(seconds[m]), 1)}
        if device == "cuda" and not m.captured:
            facts["synchronizations"] = synchronizations(epochs[m])
        key = m.alpha or ("vSAM" if mixed else "SAM" if m.rate else "SGD")
        rows.append(
            row(
                "steps",
                m.name,
                f"{name}, {batch_size} {'PNG files' if encoded else 'from memory'}",
                columns,
                against=IDEAL if IDEAL in columns else None,
                target=(0.98 if device == "cuda" else 0.97) if IDEAL in columns and not whole else None,
                note="the whole batch is loaded, and the choice copied out of it" if m.in_loop else None,
                papers=None if m.alpha and mixed else quote(name, key),
                **facts,
            )
        )
    return rows
