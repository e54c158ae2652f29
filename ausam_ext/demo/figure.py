"""The picture: accuracy against cost, AUSAM's choice of samples, and vSAM's choice of steps."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from .data import LABEL_NOISE
from .report import Row
from .training import VSAM_WARMUP_EPOCHS, Run

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
        figure = Figure(figsize=(12, 8.5), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.12))
        panels = figure.subplot_mosaic(
            [["cost", "chosen", "wrong"], ["rate", "norm", "norm"]],
            width_ratios=(6, 5, 1),
        )
        accuracy_and_cost(panels["cost"], rows)
        chosen_samples(panels["chosen"], panels["wrong"], [run for run in runs if run.method == "AUSAM"])
        sampling_rate(panels["rate"], runs)
        psf_norm(panels["norm"], [run for run in runs if run.method == "vSAM"])
        figure.savefig(path, format="png", dpi=100, pil_kwargs={"optimize": True})


def accuracy_and_cost(ax: Axes, rows: Sequence[Row]) -> None:
    ax.set_title("(a) Accuracy and cost: upper left is best")
    relative = all(row.sam_percent is not None for row in rows)
    costs = {row.method: 1e4 / row.sam_percent if row.sam_percent else row.seconds for row in rows}
    last, gap = float("-inf"), 0.02 * (max(costs.values()) - min(costs.values()))
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
    unit = "% of SAM's" if relative else "s"
    ax.set_xlabel(f"Training time, {unit} (moved apart where they overlap)")
    ax.set_ylabel("Test accuracy, % (mean ± std)")
    ax.margins(x=0.08)
    ax.grid(alpha=0.3)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(
        [handles[row.method] for row in rows],
        [row.method for row in rows],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),  # beneath: within, it would hide an error bar
        ncols=4,
        frameon=False,
    )


def chosen_samples(heat: Axes, strip: Axes, runs: Sequence[Run]) -> None:
    """How often AUSAM took each sample, in order of ADLP; a rank stands for another sample in each seed."""
    heat.set_title("(b) How often AUSAM picks a sample")
    epochs = len(runs[0].chosen) if runs else 0
    if epochs < 2:
        absent(heat, "AUSAM was not run for longer\nthan its full first epoch")
        strip.set_axis_off()
        return
    frequency = torch.stack([by_rank(selected(run), run) for run in runs]).mean(0)
    image = heat.imshow(
        (100 * frequency.T).numpy(),
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
    wrong = torch.stack([by_rank(run.wrong.float().unsqueeze(0), run)[0] for run in runs]).mean(0)
    edges = torch.linspace(0, 100, BINS + 1)
    strip.stairs((100 * wrong).numpy(), edges.numpy(), orientation="horizontal", fill=True, color="#D55E00")
    strip.axvline(100 * LABEL_NOISE, color="black", linewidth=1, linestyle="--")
    strip.set(xlim=(0, 100), ylim=(0, 100), yticks=[])
    strip.set_xlabel("Wrong labels, %\n(dashed: of all)")
    heat.figure.colorbar(image, ax=strip, fraction=0.4, aspect=30, label="Epochs in which it is picked, %")


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
    if not methods or len(runs[0].chosen) <= VSAM_WARMUP_EPOCHS:
        absent(ax, "vSAM was not run for longer\nthan its first epochs of SAM")
        return
    first = warmup(ax, runs[0])
    for method, line in zip(methods, ("-", "--", ":"), strict=False):
        rates = 100 * torch.tensor([run.rate for run in runs if run.method == method])[:, first:]
        steps = range(first, first + rates.shape[1])
        color = STYLES[method][0]
        ax.plot(steps, rates.mean(0).numpy(), line, color=color, linewidth=2, label=method)
        lowest, highest = rates.amin(0).numpy(), rates.amax(0).numpy()
        ax.fill_between(steps, lowest, highest, color=color, alpha=0.15, linewidth=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("Step")
    ax.set_ylabel("Sampling rate, %")
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right", title="mean, and range over seeds")


def psf_norm(ax: Axes, runs: Sequence[Run]) -> None:
    ax.set_title("(d) The sharpness part (PSF) of vSAM's gradient")
    if not runs:
        absent(ax, "vSAM was not run")
        return
    warmup(ax, runs[0])
    steps = torch.cat([torch.tensor(run.sampled).nonzero().flatten() for run in runs])
    norms = torch.cat([torch.tensor(run.psf_norm) for run in runs])
    color = STYLES["vSAM"][0]
    ax.semilogy(
        steps.numpy(),
        norms.numpy(),
        ".",
        color=color,
        alpha=0.3,
        markersize=4,
        label="a step with a second pass",
    )
    width = len(runs[0].sampled) // min(20, len(runs[0].chosen))
    groups = (steps // width).unique().tolist()
    medians = [norms[steps // width == group].median().item() for group in groups]
    middles = [(group + 0.5) * width for group in groups]
    ax.plot(middles, medians, color="black", linewidth=2, label=f"median over {width} steps")
    ax.set_xlabel("Step")
    ax.set_ylabel("PSF norm (last 10 tensors)")
    ax.grid(alpha=0.3)
    ax.legend()


def warmup(ax: Axes, run: Run) -> int:
    """Marks the steps of vSAM that all take the second pass; returns how many there are."""
    steps = len(run.sampled) // len(run.chosen) * VSAM_WARMUP_EPOCHS
    ax.axvspan(0, steps, color="0.88", label=f"first {VSAM_WARMUP_EPOCHS} epochs: every step")
    return steps


def absent(ax: Axes, reason: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, reason, ha="center", va="center", transform=ax.transAxes)
