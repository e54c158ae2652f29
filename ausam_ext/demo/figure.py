"""The picture: accuracy against cost, AUSAM's choice of samples, and vSAM's choice of steps."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from .data import LABEL_NOISE
from .report import Row
from .training import Run

# Okabe and Ito's colours, which are told apart with any colour vision; the markers do it in print.
STYLES = {
    "SGD": ("#000000", "o"),
    "SAM": ("#D55E00", "s"),
    "SAM+Random": ("#999999", "D"),
    "AUSAM": ("#0072B2", "^"),
    "vSAM": ("#009E73", "v"),
    "vSAM-A": ("#E69F00", "<"),
    "AUSAM+vSAM": ("#CC79A7", "P"),
}
BINS = 32  # of the samples, by ADLP


def draw(path: Path, rows: Sequence[Row], runs: Sequence[Run]) -> None:
    with matplotlib.rc_context({"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold"}):
        figure = Figure(figsize=(12, 9), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1))
        left, right = top.subfigures(1, 2)
        accuracy_and_cost(left.subplots(), rows)
        chosen_samples(right, [run for run in runs if run.method == "AUSAM"])
        rate, norm = bottom.subplots(1, 2)
        sampling_rate(rate, runs)
        psf_norm(norm, [run for run in runs if run.method == "vSAM"])
        figure.savefig(path, format="png", dpi=100)


def accuracy_and_cost(ax: Axes, rows: Sequence[Row]) -> None:
    ax.set_title("(a) Accuracy and cost: upper left is best")
    relative = all(row.sam_percent is not None for row in rows)
    costs = {row.method: 1e4 / row.sam_percent if row.sam_percent else row.seconds for row in rows}
    last, gap = float("-inf"), 0.015 * (max(costs.values()) - min(costs.values()))
    for row in sorted(rows, key=lambda row: costs[row.method]):
        color, marker = STYLES[row.method]
        last = max(costs[row.method], last + gap)  # side by side where one would hide the other
        ax.errorbar(
            last,
            row.accuracy,
            yerr=row.accuracy_std,
            color=color,
            marker=marker,
            markersize=9,
            capsize=4,
            linestyle="none",
            label=row.method,
        )
    ax.set_xlabel("Training time, % of SAM's" if relative else "Training time, s")
    ax.set_ylabel("Test accuracy, % (mean ± std)")
    ax.margins(x=0.08)
    ax.grid(alpha=0.3)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(
        [handles[row.method] for row in rows],
        [row.method for row in rows],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=4,
        frameon=False,
    )


def chosen_samples(panel: SubFigure, runs: Sequence[Run]) -> None:
    """How often AUSAM took each sample, in order of ADLP; a rank stands for another sample in each seed."""
    panel.suptitle("(b) What AUSAM trains on", fontsize=11, fontweight="bold")
    epochs = len(runs[0].chosen) if runs else 0
    if epochs < 2:
        absent(panel.subplots(), "AUSAM was not run for longer than its full first epoch")
        return
    heat, strip = panel.subplots(1, 2, sharey=True, width_ratios=(5, 1))
    frequency = torch.stack([by_rank(selected(run), run) for run in runs]).mean(0)
    image = heat.imshow(
        100 * frequency.T,
        origin="lower",
        aspect="auto",
        cmap="cividis",
        vmin=0,
        vmax=100,
        extent=(0.5, epochs - 0.5, 0, 100),
        interpolation="nearest",
    )
    heat.set_xlabel("Epoch (the first, with all samples, is left out)")
    heat.set_ylabel("Samples by ADLP at the end, percentile")
    panel.colorbar(image, ax=heat, location="top", aspect=40, label="Chance of being trained on, %")

    wrong = torch.stack([by_rank(run.wrong.float().unsqueeze(0), run)[0] for run in runs]).mean(0)
    edges = torch.linspace(0, 100, BINS + 1)
    strip.stairs(100 * wrong, edges, orientation="horizontal", fill=True, color="#D55E00")
    strip.axvline(100 * LABEL_NOISE, color="black", linewidth=1, linestyle="--")
    strip.set_xlim(0, 100)
    strip.set_xlabel("Wrong labels, %\n(dashed: of all)")


def selected(run: Run) -> Tensor:
    """``[groups of epochs, samples]``: the share of a group's epochs that trained on a sample."""
    visits = torch.zeros(len(run.chosen) - 1, len(run.wrong))
    for row, index in zip(visits, run.chosen[1:], strict=True):
        row[index] = 1
    return torch.stack([part.mean(0) for part in visits.tensor_split(min(20, len(visits)))])


def by_rank(values: Tensor, run: Run) -> Tensor:
    """``[rows, samples]`` to ``[rows, BINS]``: means over samples of like ADLP, lowest first."""
    ordered = values[:, run.adlp.argsort()]
    return torch.stack([part.mean(1) for part in ordered.tensor_split(BINS, dim=1)], 1)


def sampling_rate(ax: Axes, runs: Sequence[Run]) -> None:
    ax.set_title("(c) How often vSAM takes the second pass")
    methods = [name for name in ("vSAM", "vSAM-A", "AUSAM+vSAM") if any(run.method == name for run in runs)]
    if not methods:
        absent(ax, "vSAM was not run")
        return
    for method, line in zip(methods, ("-", "--", ":"), strict=False):
        rates = 100 * torch.tensor([run.rate for run in runs if run.method == method])
        steps = torch.arange(rates.shape[1])
        color = STYLES[method][0]
        ax.plot(steps, rates.mean(0), line, color=color, linewidth=2, label=method)
        ax.fill_between(steps, rates.amin(0), rates.amax(0), color=color, alpha=0.15, linewidth=0)
    ax.set_ylim(0, 105)
    ax.set_xlabel("Step (the first three epochs take every second pass)")
    ax.set_ylabel("Sampling rate, % (mean, range of seeds)")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)


def psf_norm(ax: Axes, runs: Sequence[Run]) -> None:
    ax.set_title("(d) The sharpness part (PSF) of vSAM's gradient")
    if not runs:
        absent(ax, "vSAM was not run")
        return
    steps = torch.cat([torch.tensor(run.sampled).nonzero().flatten() for run in runs])
    norms = torch.cat([torch.tensor(run.psf_norm) for run in runs])
    color = STYLES["vSAM"][0]
    ax.semilogy(steps, norms, ".", color=color, alpha=0.3, markersize=4, label="a step with a second pass")
    group = len(runs[0].sampled) // min(20, len(runs[0].chosen))
    groups = (steps // group).unique().tolist()
    medians = [norms[steps // group == g].median() for g in groups]
    middles = [(g + 0.5) * group for g in groups]
    ax.plot(middles, medians, color="black", linewidth=2, label=f"median of {group} steps")
    ax.set_xlabel("Step")
    ax.set_ylabel("Norm over the last 10 parameter tensors")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)


def absent(ax: Axes, reason: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, reason, ha="center", va="center", transform=ax.transAxes)
