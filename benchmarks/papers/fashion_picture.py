"""All methods on Fashion-MNIST as a picture: accuracy against cost, and seed by seed minus SAM."""

from collections.abc import Callable, Mapping
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from ..figures import BLACK, BLUE, GREEN, ORANGE, RED, png

Line = dict[str, Any]
KINDS = {
    "AUSAM": (BLUE, "o"),
    "vSAM": (RED, "s"),
    "AUSAM and vSAM": (GREEN, "^"),
    "SGD, SAM": (BLACK, "P"),
    "others": (ORANGE, "v"),
}

RANGE = 2  # percentage points: what is further below SAM is named, not drawn
STEP = 0.06  # between names that would lie upon each other


def kind(name: str) -> str:
    if name == "AUSAM+vSAM":
        return "AUSAM and vSAM"
    if name in ("SGD", "SAM"):
        return "SGD, SAM"
    return next((known for known in ("AUSAM", "vSAM") if name.startswith(known)), "others")


def draw(
    of: Mapping[str, Line],
    difference: Callable[[Line, Line], list[float]],
    cost: Callable[[Line, Line], float],
) -> bytes:
    """``of``: what was trained, by the method's name, in the order of the rows."""
    sam = of["SAM"]
    figure = Figure(figsize=(13, 7))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    middle = mean(sam["last"])
    shown: set[str] = set()
    placed: list[tuple[float, float]] = []
    names: list[str] = []
    for y, (name, line) in enumerate(of.items()):
        label = kind(name)
        color, marker = KINDS[label]
        style = {"color": color, "marker": marker, "linestyle": "none", "capsize": 2}
        value, x = mean(line["last"]), cost(line, sam)
        outside = value < middle - RANGE
        names.append(f"{name}: {value - middle:+.2f}, outside" if outside else name)
        if outside:
            continue
        legend = None if label in shown else label
        shown.add(label)
        left.errorbar(x, value, yerr=_deviation(line["last"]), label=legend, alpha=0.8, **style)
        height = value
        while any(abs(x - a) < 0.15 and abs(height - b) < STEP for a, b in placed):
            height += STEP
        placed.append((x, height))
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.3}
        left.annotate(name, (x, value), (x + 0.01, height), fontsize=7, color=color, arrowprops=arrow)
        if line is not sam:
            d = difference(line, sam)
            right.plot(d, [y] * len(d), ".", color=color, alpha=0.5)
            right.errorbar(mean(d), y, xerr=_deviation(d), **style)
    left.set_xlabel("passes, of SAM's")
    left.set_ylabel("right answers after the last epoch, % of test images: mean and standard deviation")
    left.legend(loc="lower right")
    right.axvline(0, color=BLACK, linewidth=0.8)
    right.set_yticks(range(len(of)), names)
    right.invert_yaxis()
    right.set_xlabel("minus SAM with the same seed, percentage points")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    return png(figure)


def _deviation(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
