"""One training loop for all methods, as a user would write it."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm  # type: ignore[import-not-found, import-untyped, unused-ignore]

from .. import ADLP, SAM, VSAM, AUSAMBatchSampler
from .data import CLASSES, Digits, load
from .methods import METHODS

# The same for all methods.
BATCH_SIZE = 64
LEARNING_RATE = 0.05
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
RHO = 0.1
VSAM_WARMUP_EPOCHS = 3  # as in the papers


@dataclass
class Run:
    """One training: what it cost and what came out."""

    method: str
    seed: int
    seconds: list[float] = field(default_factory=list)  # of each epoch
    samples: int = 0  # through forward and backward
    chosen: list[Tensor] = field(default_factory=list)  # of each epoch: the samples trained on
    sampled: list[bool] = field(default_factory=list)  # of each step: whether it took the second pass
    rate: list[float] = field(default_factory=list)  # of each step, vSAM's sampling rate
    psf_norm: list[float] = field(default_factory=list)  # of each of vSAM's steps with a second pass
    adlp: Tensor = field(default_factory=lambda: torch.empty(0))  # of each sample, at the end
    wrong: Tensor = field(default_factory=lambda: torch.empty(0))  # of each sample, whether its label is
    accuracy: float = 0.0  # at the end, in percent


def network() -> nn.Module:
    def block(channels: int, filters: int) -> nn.Module:
        convolution = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.ReLU())

    features = [block(1, 16), block(16, 32), nn.MaxPool2d(2), block(32, 64), nn.MaxPool2d(2)]
    model = nn.Sequential(*features, nn.Flatten(), nn.Linear(64 * 2 * 2, CLASSES))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on the CPU


def train(run: Run, digits: Digits, epochs: int, device: torch.device) -> Iterator[None]:
    """Trains and fills in ``run``. Pauses after each epoch, so that methods can take turns."""
    method = METHODS[run.method]
    torch.manual_seed(run.seed)
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)

    adlp = ADLP(len(digits.train), device=device)
    batches = AUSAMBatchSampler(adlp, BATCH_SIZE, **method.sampler, seed=run.seed)
    loader = DataLoader(digits.train, batch_sampler=batches, collate_fn=lambda batch: batch)

    warmup_steps = VSAM_WARMUP_EPOCHS * len(batches)
    if method.vsam is None:
        sam = SAM(model, RHO)
    else:
        sam = VSAM(model, RHO, warmup_steps=warmup_steps, seed=run.seed, **method.vsam)

    def forward_backward(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y, reduction="none")
        loss.mean().backward()
        return loss

    for epoch in range(epochs):
        batches.set_epoch(epoch)
        model.train()
        chosen: list[Tensor] = []
        sampled: list[bool] = []
        start = time.perf_counter()
        for index, (x, y) in batches.indexed(loader):
            if isinstance(sam, VSAM):
                run.rate.append(sam.controller.rate if len(run.rate) >= warmup_steps else 1.0)
            if method.sam:
                loss, loss_perturbed = sam.backward(partial(forward_backward, x, y))
            else:
                loss, loss_perturbed = forward_backward(x, y), None
            if method.adlp and loss_perturbed is not None:
                adlp.update(index, loss, loss_perturbed)
            optimizer.step()
            chosen.append(index)
            sampled.append(loss_perturbed is not None)
        synchronize(device)
        run.seconds.append(time.perf_counter() - start)
        schedule.step()

        run.samples += sum(len(index) * (1 + second) for index, second in zip(chosen, sampled, strict=True))
        run.chosen.append(torch.cat(chosen).cpu())
        run.sampled += sampled
        if isinstance(sam, VSAM) and any(sampled):
            state = sam.controller.state_dict()
            run.psf_norm += state["observed"][: state["count"], 0].tolist()[-sum(sampled) :]
        yield
    run.adlp, run.wrong = adlp.mean().cpu(), digits.wrong
    run.accuracy = accuracy(model, digits)


def compare(methods: Sequence[str], seeds: int, epochs: int, device: torch.device) -> list[Run]:
    """Trains with every method and seed; a seed gives all methods the same data and initial weights."""
    runs: list[Run] = []
    digits = load(0, device)
    for method in methods:  # what only the first use of a kernel costs counts for none
        deque(train(Run(method, 0), digits, 1, device), maxlen=0)
    with tqdm(total=seeds * epochs * len(methods), unit=" epochs") as bar:
        for seed in range(seeds):
            bar.set_description(f"seed {seed + 1} of {seeds}")
            digits = load(seed, device)
            group = [Run(method, seed) for method in methods]
            # Epoch by epoch in turn: a machine that is slow for a while is slow for all methods.
            for _ in zip_longest(*(train(run, digits, epochs, device) for run in group)):
                bar.update(len(group))
            runs += group
    return runs


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits) -> float:
    """Test images that are recognised, in percent."""
    model.eval()
    return 100 * (model(digits.test.x).argmax(1) == digits.test.y).double().mean().item()


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
