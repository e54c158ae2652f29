"""The picture, a row for each data set: accuracy against cost, what AUSAM trains on, vSAM's second passes."""

from collections.abc import Sequence
from itertools import accumulate
from statistics import mean, stdev

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from ..figures import BLACK, BLUE, GREEN, ORANGE, PINK, RED, png
from .compare import Run
from .report import Group, grouped, robust_seconds
from .rows import DATA, METHODS, Data

# A colour for each family of methods (one for AUSAM's scores of probabilities), a marker for each of them.
STYLES = {
    "SGD": (BLACK, "o"),
    "SAM": (RED, "s"),
    "SAM+Random": (ORANGE, "D"),
    "AUSAM": (BLUE, "^"),
    "AUSAM-weighted": (BLUE, "p"),
    "AUSAM-probability": (PINK, "*"),
    "vSAM": (GREEN, "v"),
    "vSAM-A": (GREEN, "X"),
    "AUSAM-probability+vSAM": (PINK, "P"),
}
CHOOSE = ("SAM+Random", "AUSAM", "AUSAM-probability")  # AUSAM-weighted chooses as AUSAM does
SECOND = ("SAM", "vSAM")  # other methods with vSAM take it at the same steps


def draw(runs: Sequence[Run]) -> bytes:
    groups = grouped(runs)
    with matplotlib.rc_context({"font.size": 9.5, "axes.titlesize": 10, "axes.titleweight": "bold"}):
        figure = Figure(figsize=(11.5, 7), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        for data, panels in zip(DATA, figure.subplots(2, 3, width_ratios=(5, 4, 4)), strict=True):
            group = groups[data.name]
            accuracy_and_cost(panels[0], data, group)
            what_is_chosen(panels[1], data, group)
            second_passes(panels[2], group)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: list(METHODS).index(labels[i]))
        figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="outside lower center",
            ncols=5,
            frameon=False,
        )
        return png(figure)


def accuracy_and_cost(ax: Axes, data: Data, group: Group) -> None:
    ax.set_title(f"{data.name[0].upper()}{data.name[1:]}: upper left is best")
    seconds = {method: robust_seconds(runs) for method, runs in group.items()}
    costs = {method: 100 * s / seconds["SAM"] for method, s in seconds.items()} if "SAM" in group else seconds
    last, gap = float("-inf"), 0.035 * (max(costs.values()) - min(costs.values()))
    for method in sorted(group, key=costs.__getitem__):
        accuracies = [run.accuracy for run in group[method]]
        color, marker = STYLES[method]
        last = max(costs[method], last + gap)  # side by side if one would hide the other
        ax.errorbar(
            last,
            mean(accuracies),
            yerr=stdev(accuracies) if len(accuracies) > 1 else None,
            color=color,
            marker=marker,
            markersize=9,
            elinewidth=1,
            capsize=3,
            linestyle="none",
            label=method,
        )
    unit = "% of SAM's" if "SAM" in group else "s"
    ax.set_xlabel(f"Training time, {unit} (moved apart if they overlap)")
    ax.set_ylabel("Test accuracy, % (mean ± std)")
    ax.margins(x=0.08)
    ax.grid(alpha=0.3)


def what_is_chosen(ax: Axes, data: Data, group: Group) -> None:
    ax.set_title(f"{data.marked[0].upper()}{data.marked[1:]}\namong the samples trained on")
    shown = [method for method in CHOOSE if method in group]
    if not shown:
        absent(ax, "No method that chooses was run")
        return
    for method in shown:
        lines(ax, method, [[100 * share for share in run.marked] for run in group[method]])
    ax.axhline(100 * group[shown[0]][0].marked[0], color=BLACK, linewidth=1, linestyle="--")  # a whole epoch
    ax.set_ylabel("Share, % (dashed: of all samples)")


def second_passes(ax: Axes, group: Group) -> None:
    ax.set_title("Second passes so far")
    shown = [method for method in SECOND if method in group]
    if not shown:
        absent(ax, "Neither SAM nor vSAM was run")
        return
    for method in shown:
        lines(ax, method, [list(accumulate(run.second_passes)) for run in group[method]])
    ax.set_ylim(bottom=0)


def lines(ax: Axes, method: str, values: Sequence[Sequence[float]]) -> None:
    """Mean and range over the seeds, for each epoch."""
    by_epoch = list(zip(*values, strict=True))
    epochs = range(1, len(by_epoch) + 1)
    color, marker = STYLES[method]
    means = [mean(each) for each in by_epoch]
    every = max(1, len(means) // 10)
    ax.plot(epochs, means, color=color, marker=marker, markevery=every, markersize=6, linewidth=1.5)
    lowest, highest = [min(each) for each in by_epoch], [max(each) for each in by_epoch]
    ax.fill_between(epochs, lowest, highest, color=color, alpha=0.15, linewidth=0)
    ax.set_xlabel("Epoch (mean and range over seeds)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)


def absent(ax: Axes, reason: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, reason, ha="center", va="center", transform=ax.transAxes)
