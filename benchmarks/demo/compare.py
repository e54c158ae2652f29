"""Trains with every method and seed, the methods in turns."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..data import digits
from ..job import Job
from ..problems import Problem, problem
from ..training import Training
from .rows import DATA, Data, job


@dataclass
class Run:
    """One training: what it cost and what came out."""

    data: str
    method: str
    seed: int
    accuracy: float = 0.0  # at the end, on test images, in percent
    samples: int = 0  # through forward and backward
    steps: int = 0
    second_passes: list[int] = field(default_factory=list)  # of each epoch
    marked: list[float] = field(default_factory=list)  # of each epoch: share of them among the samples
    seconds: list[float] = field(default_factory=list)  # of each epoch


def compare(methods: Sequence[str], seeds: int, epochs: int | None, device: torch.device) -> list[Run]:
    """``epochs`` of each training; if None, each data set's own.

    A seed gives all methods the same data and initial weights.
    """
    runs: list[Run] = []
    for method in methods:  # what only the first use of a kernel costs counts for none
        first = job(method, DATA[0], 1, 0)
        deque(Training(first, _problem(first, device), device).steps(), maxlen=0)
    lengths = {data: epochs or data.epochs for data in DATA}
    with tqdm(total=seeds * sum(lengths.values()) * len(methods), unit=" epochs", disable=None) as bar:
        for data, length in lengths.items():
            for seed in range(seeds):
                bar.set_description(f"{data.name}, seed {seed + 1} of {seeds}")
                jobs = [job(method, data, length, seed) for method in methods]
                shared, marked = _problem(jobs[0], device), marks(data, seed)
                group = [Run(data.name, method, seed) for method in methods]
                trainings = [
                    train(run, each, shared, marked, device) for run, each in zip(group, jobs, strict=True)
                ]
                # Epoch by epoch in turn: a machine that is slow for a while is slow for all methods.
                for _ in zip_longest(*trainings):
                    bar.update(len(group))
                runs += group
    return runs


def train(run: Run, job: Job, problem: Problem, marked: Tensor, device: torch.device) -> Iterator[None]:
    """Trains and fills in ``run``; pauses after each epoch."""
    training = Training(job, problem, device)
    chosen: list[Tensor] = []
    before = 0
    for index in training.steps():
        if index is not None:
            chosen.append(index.cpu())
            continue
        passes = training.progress.second_passes
        run.second_passes.append(passes - before)
        run.marked.append(round(marked[torch.cat(chosen)].double().mean().item(), 4))
        chosen, before = [], passes
        yield
    run.accuracy = round(training.progress.accuracy[-1], 4)
    run.seconds = [round(seconds, 4) for seconds in training.progress.seconds]
    run.samples, run.steps = training.counts.backward_samples, training.counts.steps


def marks(data: Data, seed: int) -> Tensor:
    """Which training samples are followed: those with a wrong label, or of the five rarest classes."""
    train_set, _ = digits.load(data.name, seed)
    if data.name == digits.WRONG:
        return digits.wrong_labels(len(train_set), seed) > 0
    return train_set.y >= digits.CLASSES // 2


def _problem(job: Job, device: torch.device) -> Problem:
    return problem(job, Path(), device)  # digits need no folder
