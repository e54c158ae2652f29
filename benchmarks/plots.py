"""Pictures of the suites, made to be read without the text."""

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from .figures import BLACK, BLUE, RED, STYLES
from .harness import Row
from .operators.shapes import LISTS
from .tables import duration, first, short


def tick(color: str, label: str | None = None) -> dict[str, Any]:
    """Style of a mark for where something is or should be."""
    style = {"color": color, "marker": "|", "markersize": 13, "markeredgewidth": 2.5, "linestyle": "none"}
    return style if label is None else {**style, "label": label}


def by(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def speedups(rows: Sequence[Row]) -> Figure:
    """How many times faster than eager, torch.compile and PyTorch's nearest call: a line per case."""
    figure = Figure(figsize=(10, 0.27 * len(rows) + 1.6))
    ax = figure.add_subplot()
    names = {"eager": "eager reference", "torch.compile": "its torch.compile", "": "PyTorch's nearest call"}
    styles = dict(zip(names, STYLES, strict=False))
    for y, row in enumerate(rows):
        for name, r in row["ratios"].items():
            if name.startswith(("part: ", "copy", "graph")):
                continue
            color, marker = styles[name if name in styles else ""]
            low, high = r["median"] - r["q1"], r["q3"] - r["median"]
            ax.errorbar(
                r["median"], y, xerr=[[low], [high]], color=color, marker=marker, markersize=6, capsize=2
            )
        if row["target"]:
            ax.plot(
                row["target"],
                y,
                color="black",
                marker="|",
                markersize=13,
                markeredgewidth=2,
                linestyle="none",
            )
    ax.axvline(1, color="black", linewidth=1)
    ax.set_xscale("log")
    plain_log(ax.xaxis)
    ax.set_yticks(range(len(rows)), [f"{row['what']},  {row['size']}" for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ends = [i for i in range(1, len(rows)) if rows[i]["what"] != rows[i - 1]["what"]]
    for end in ends:
        ax.axhline(end - 0.5, color="0.85", linewidth=0.8)
    ax.grid(axis="x", which="both", alpha=0.25)
    ax.set_xlabel("Times faster than ... (log scale; left of 1: slower). Whiskers: quartiles")
    ax.set_title("What the fused kernels gain", pad=30)
    for name, label in names.items():
        ax.plot([], [], color=styles[name][0], marker=styles[name][1], linestyle="none", label=label)
    ax.plot([], [], **tick(BLACK, "target"))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False)
    return figure


def memory_pace(rows: Sequence[Row]) -> Figure:
    """Bytes per second of the operators on lists of tensors, beside a copy of as many bytes."""
    rows = [row for row in rows if row["size"] in LISTS]
    figure = Figure(figsize=(9, 0.3 * len(rows) + 1.4))
    ax = figure.add_subplot()
    paces = [row["bytes"] / first(row) / 1e9 for row in rows]
    copies = [row["bytes"] / row["columns"]["copy"]["median"] / 1e9 for row in rows]
    ax.barh(range(len(rows)), paces, color=BLUE, height=0.7)
    ax.plot(copies, range(len(rows)), **tick(RED))
    for y, (p, c) in enumerate(zip(paces, copies, strict=True)):
        ax.text(max(p, c), y, f"  {short(p)}", va="center", fontsize=9)
    ax.plot([], [], **tick(RED, "a copy of as many bytes"))
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    ax.set_yticks(range(len(rows)), [f"{row['what']},  {row['size']}" for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.margins(x=0.1)
    ax.set_xlabel("Bytes that have to move, in GB per second: longer is faster")
    ax.set_title("Lists of tensors: how fast memory is read and written", loc="left")
    ax.grid(axis="x", alpha=0.25)
    return figure


def steps(rows: Sequence[Row]) -> Figure:
    """Milliseconds per step of each method, a panel per setting, with the ideal of each."""
    panels = by(rows, "size")
    figure = Figure(figsize=(9.5, sum(0.34 * len(group) + 1.1 for group in panels.values())))
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=[len(g) + 2 for g in panels.values()])
    for ax, (size, group) in zip(axes[:, 0], panels.items(), strict=True):
        times = [1e3 * first(row) for row in group]
        ax.barh(range(len(group)), times, color=BLUE, height=0.7)
        for y, (row, ms) in enumerate(zip(group, times, strict=True)):
            label, right = f"{short(ms)} ms", ms
            if "ideal" in row["columns"]:
                ideal = 1e3 * row["columns"]["ideal"]["median"]
                right = max(right, ideal)
                ax.plot(ideal, y, **tick(RED))
            if "SAM" in row["ratios"]:
                label += f"   {100 * row['ratios']['SAM']['median']:.0f} SAM%"
            ax.text(right, y, "  " + label, va="center", fontsize=9)
        ax.set_yticks(range(len(group)), [row["what"] for row in group])
        ax.set_ylim(len(group) - 0.4, -0.6)
        ax.set_xlim(0, 1.28 * max(times))
        ax.set_title(size, loc="left")
        ax.set_xlabel("Milliseconds per step: shorter is faster")
    if any("ideal" in row["columns"] for row in rows):
        axes[0, 0].plot([], [], **tick(RED, "ideal: what its passes cost by themselves"))
        axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    figure.tight_layout()
    return figure


def scaling(rows: Sequence[Row]) -> Figure:
    """Time over size, a panel per axis, a line per column."""
    panels = by(rows, "what")
    figure = Figure(figsize=(5.2 * min(2, len(panels)), 4.2 * ((len(panels) + 1) // 2)))
    columns = min(2, len(panels))
    axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, (what, group) in zip(axes.flat, panels.items(), strict=False):
        numbers = [number(row["size"]) for row in group]
        times = [column["median"] for row in group for column in row["columns"].values()]
        scale, unit = (1e6, "Microseconds") if max(times) < 1e-2 else (1e3, "Milliseconds")
        ends = {}
        for (color, marker), name in zip(STYLES, group[0]["columns"], strict=False):
            has = [name in row["columns"] for row in group]
            columns = [row["columns"][name] for row in compress(group, has)]
            low, y, high = ([scale * column[q] for column in columns] for q in ("q1", "median", "q3"))
            x = list(compress(numbers, has))
            ax.plot(x, y, color=color, marker=marker, markersize=5)
            ax.fill_between(x, low, high, color=color, alpha=0.2)
            ends[name] = (y[-1], color)
        if min(numbers) > 0 and max(numbers) > 20 * min(numbers):
            ax.set_xscale("log")
            plain_log(ax.xaxis)
        if max(times) > 20 * min(times):
            ax.set_yscale("log")
            plain_log(ax.yaxis)
        else:
            ax.set_ylim(bottom=0)
        if len(numbers) <= 4:
            ax.set_xticks(numbers)
        label_ends(ax, ends)
        ax.set_xlabel(what)
        ax.set_ylabel(f"{unit} per step")
        ax.grid(alpha=0.25)
    figure.suptitle("What a step costs beside its passes; plan: of an epoch, shared among its steps")
    figure.tight_layout()
    return figure


def beside(rows: Sequence[Row]) -> Figure:
    """Every column of every row as a bar, the row's first one in colour."""
    bars = sum(len(row["columns"]) + 1 for row in rows)
    figure = Figure(figsize=(9.5, 0.28 * bars + 1.3))
    ax = figure.add_subplot()
    y, ticks, labels = 0, [], []
    for row in rows:
        ax.text(0, y, f"{row['what']}, {row['size']}", va="center", weight="bold")
        base = first(row)
        for index, (name, column) in enumerate(row["columns"].items()):
            y += 1
            share = column["median"] / base
            ax.barh(y, share, color=BLUE if index == 0 else "0.7", height=0.75)
            ax.text(share, y, f"  {duration(column['median'])}", va="center", fontsize=9)
            ticks.append(y)
            labels.append(name)
        y += 1
    ax.axvline(1, color="black", linewidth=1)
    ax.set_yticks(ticks, labels)
    ax.set_ylim(y, -0.8)
    ax.margins(x=0.12)
    ax.set_xlabel("Time, as a multiple of the first of each group: shorter is faster")
    return figure


def label_ends(ax: Axes, ends: dict[str, tuple[float, str]]) -> None:
    """Names the lines at the right, each beside its end or just above the name below it."""
    to_axes = ax.transData + ax.transAxes.inverted()
    last = float("-inf")
    for name, (y, color) in sorted(ends.items(), key=lambda item: item[1]):
        last = max(to_axes.transform((1, y))[1], last + 0.05)
        ax.text(1.01, last, name, transform=ax.transAxes, color=color, va="center")


def number(size: str) -> float:
    """The leading number of a size such as "50,000 samples"."""
    return float(size.replace(",", "").split()[0])


def plain_log(axis: matplotlib.axis.Axis) -> None:
    """1, 10, 100 in place of powers."""

    def plain(value: float, _: int) -> str:
        if value >= 1e4:
            return f"{value / 1e6:,.10g} M" if value >= 1e6 else f"{value / 1e3:,.10g} k"
        return f"{value:,.10g}"

    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_formatter(NullFormatter())


#: The pictures of each suite, by the name of their file.
PICTURES: dict[str, dict[str, Callable[[Sequence[Row]], Figure]]] = {
    "operators": {"speedups": speedups, "memory-pace": memory_pace},
    "steps": {"steps": steps},
    "scaling": {"scaling": scaling},
    "peers": {"peers": beside},
}
