"""Trains and draws what docs/monitoring.md shows: `python docs/figures/monitoring.py` in the root.

Each run trains a small network on handwritten digits, as it should be or with one mistake, and keeps what
`Monitor` says of each epoch in monitoring.json. The figures are drawn from that, and tests compare it with
what the page says. Half a minute of one core.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

HERE = Path(__file__).parent
RESULTS = HERE / "monitoring.json"
sys.path.append(str(HERE.parents[1]))

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler, Monitor  # noqa: E402
from benchmarks.data import digits  # noqa: E402
from benchmarks.figures import BLUE, ORANGE, RED, png  # noqa: E402

IMAGES, BATCH = 1280, 64
STEPS = IMAGES // BATCH  # of an epoch
Values = dict[str, list[float]]  # by Monitor's names, one after the other


@dataclass(frozen=True)
class Run:
    """A training; as it should be, unless something is given."""

    rho: float = 0.05
    learning_rate: float = 0.05
    epochs: int = 20
    every: int = 1  # epochs, from one Monitor.compute to the next
    labels: str = digits.PLAIN
    vsam: dict[str, Any] | None = None  # arguments of VSAM; None for SAM
    ausam: dict[str, Any] | None = None  # arguments of AUSAMBatchSampler; None for whole batches
    number: Callable[[Tensor], Tensor] = lambda index: index  # what samples are called in ADLP.update


FIXED = {"initial_rate": 0.34, "alpha": 0}
RAMP = {"epochs": 20, "warmup_epochs": 0.15}
RUNS = {
    "SAM": Run(),
    "rho 0.0005": Run(rho=0.0005),
    "rho 2": Run(rho=2),
    "learning rate 2": Run(learning_rate=2),
    "learning rate 20": Run(learning_rate=20),
    "vSAM": Run(vsam=FIXED),
    "rho 0.3": Run(vsam=FIXED, rho=0.3),
    "rho 0.3, gamma 0": Run(vsam={**FIXED, "gamma": 0}, rho=0.3),
    "initial_rate=0.34, alpha=0": Run(vsam=FIXED, epochs=150, every=5),
    "initial_rate=0.34": Run(vsam={"initial_rate": 0.34}, epochs=150, every=5),
    "defaults": Run(vsam={}, epochs=150, every=5),
    "AUSAM": Run(ausam=RAMP),
    "warmup_epochs=30": Run(ausam={}),
    "half": Run(ausam=RAMP, number=lambda index: index % (IMAGES // 2)),
    "positions": Run(ausam=RAMP, number=lambda index: torch.arange(len(index))),
    "wrong labels": Run(ausam=RAMP, labels=digits.WRONG),
}


def train(run: Run, epochs: int | None = None) -> Values:
    """What Monitor says of the first ``epochs``."""
    torch.manual_seed(0)
    images, _ = digits.load(run.labels, seed=0)
    dataset = TensorDataset((images.x.flatten(1) / 255 - images.mean[0]) / images.std[0], images.y)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), run.learning_rate, momentum=0.9)
    if run.vsam is None:
        sam = SAM(model, run.rho)
    else:
        sam = VSAM(model, run.rho, warmup_steps=3 * STEPS, **run.vsam)
    settings = {"full_epochs": run.epochs} if run.ausam is None else run.ausam
    batches = AUSAMBatchSampler(ADLP(len(dataset)), BATCH, **settings)
    loader = DataLoader(dataset, batch_sampler=batches)
    monitor, found = Monitor(sam, batches), []
    for epoch in range(run.epochs if epochs is None else epochs):
        batches.set_epoch(epoch)
        for index, (x, y) in batches.indexed(loader):

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                losses = F.cross_entropy(model(x), y, reduction="none")
                losses.mean().backward()
                return losses

            loss, loss_perturbed = sam.backward(closure)
            optimizer.step()
            monitor.update(loss, loss_perturbed)
            if loss_perturbed is not None:
                batches.adlp.update(run.number(index), loss, loss_perturbed)
        if (epoch + 1) % run.every == 0:
            found.append(monitor.compute())
    return {name: [float(f"{of.get(name, math.nan):.4g}") for of in found] for name in found[-1]}


# Of each figure: the values that are drawn, and the runs with what they are called, the good one first.
FIGURES: dict[str, tuple[list[str], dict[str, str]]] = {
    "sharpness": (
        ["sharpness", "loss"],
        {"SAM": "good: rho 0.05", "rho 2": "too large: rho 2", "rho 0.0005": "too small: rho 0.0005"},
    ),
    "grad_norm": (
        ["grad_norm", "loss"],
        {"SAM": "good: learning rate 0.05", "learning rate 2": "too high: learning rate 2"},
    ),
    "psf_ratio": (
        ["psf_ratio", "loss"],
        {
            "vSAM": "good: rho 0.05",
            "rho 0.3": "too large: rho 0.3",
            "rho 0.3, gamma 0": "rho 0.3 without reuse: gamma=0",
        },
    ),
    "rate": (
        ["rate", "second_passes"],
        {
            "initial_rate=0.34, alpha=0": "good: initial_rate=0.34, alpha=0",
            "defaults": "hardly moves: the defaults",
            "initial_rate=0.34": "climbs: initial_rate=0.34",
        },
    ),
    "s_max": (["s_max"], {"AUSAM": "good: warmup_epochs=0.15", "warmup_epochs=30": "too late: 30"}),
    "visited": (
        ["visited"],
        {"AUSAM": "good", "half": "numbers used twice", "positions": "positions in the batch"},
    ),
}
COLOURS = (BLUE, RED, ORANGE)
LOGARITHMIC = ("sharpness", "grad_norm", "psf_ratio", "loss")


def curves(values: list[str], runs: dict[str, str], results: dict[str, Values]) -> Figure:
    """A panel for each value, a curve for each run."""
    figure = Figure(figsize=(9.2 if len(values) > 1 else 5.6, 2.7), layout="constrained")
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    for ax, value in zip(panels, values, strict=True):
        for (run, label), colour in zip(runs.items(), COLOURS, strict=False):
            of, every = results[run][value], RUNS[run].every
            ax.plot(range(every, every * len(of) + 1, every), of, color=colour, label=label)
        ax.set_title(value, fontsize=10)
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        if value in LOGARITHMIC:
            ax.set_yscale("log")
        else:
            ax.set_ylim(0)
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(runs), frameon=False, fontsize=9)
    return figure


def scores(results: dict[str, Values]) -> Figure:
    """The quantiles of the scores, as bands."""
    figure = Figure(figsize=(9.2, 2.7), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    named = {"AUSAM": "all labels right", "wrong labels": "a quarter of the labels wrong"}
    for ax, (run, title), colour in zip(panels, named.items(), COLOURS, strict=False):
        of = {name.removeprefix("adlp_"): v for name, v in results[run].items() if name.startswith("adlp_")}
        epochs = range(1, len(of["median"]) + 1)
        ax.fill_between(epochs, of["min"], of["max"], color=colour, alpha=0.15, label="min to max", lw=0)
        ax.fill_between(epochs, of["10%"], of["90%"], color=colour, alpha=0.35, label="10% to 90%", lw=0)
        ax.plot(epochs, of["median"], color=colour, label="median")
        ax.set_title(f"adlp: {title}", fontsize=10)
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_yscale("log")
        ax.set_ylim(1e-4, 2)
        ax.legend(loc="lower right", ncols=3, frameon=False, fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def shown(run: str, of: Values) -> Values:
    """What is shown of a run, in a figure or in words; all of one that is in none."""
    values = [value for drawn_values, runs in FIGURES.values() if run in runs for value in drawn_values]
    return {name: v for name, v in of.items() if not values or name in values or name.startswith("adlp")}


def drawn(results: dict[str, Values]) -> dict[str, Figure]:
    return {name: curves(*of, results) for name, of in FIGURES.items()} | {"adlp": scores(results)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    trained = {name: train(run) for name, run in RUNS.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(shown(name, of))}" for name, of in trained.items()]
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    for name, figure in drawn(trained).items():
        (HERE / f"monitoring-{name}.png").write_bytes(png(figure))
