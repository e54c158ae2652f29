"""All methods on Fashion-MNIST as a picture: seed by seed minus SAM, and the cost."""

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
    """``of``: what was trained, by the method's name. A line for each, the cheapest first."""
    sam = of["SAM"]
    figure = Figure(figsize=(9, 0.27 * len(of) + 1.2), layout="constrained")
    ax = figure.subplots()
    names: list[str] = []
    for y, (name, line) in enumerate(sorted(of.items(), key=lambda item: cost(item[1], sam))):
        color, marker = KINDS[kind(name)]
        d = difference(line, sam)
        names.append(f"{name}   {cost(line, sam):.2f}")
        if mean(d) < -RANGE:
            ax.text(-RANGE, y, f"← {mean(d):+.1f} ± {_deviation(d):.1f}", color=color, va="center")
            continue
        ax.plot(d, [y] * len(d), ".", color=color, alpha=0.5)
        style = {"color": color, "marker": marker, "markersize": 7, "linestyle": "none", "capsize": 3}
        legend = None if kind(name) in ax.get_legend_handles_labels()[1] else kind(name)
        ax.errorbar(mean(d), y, xerr=_deviation(d), label=legend, **style)
    ax.axvline(0, color=BLACK, linewidth=0.8)
    ax.set_yticks(range(len(of)), names)
    ax.set_ylim(len(of) - 0.4, -0.6)
    ax.set_title("Test accuracy minus SAM's with the same seed, after the last epoch", fontsize=11)
    ax.set_ylabel("method, and its cost in passes: SAM's are 1")
    ax.set_xlabel("percentage points: each seed, mean and standard deviation")
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left")
    return png(figure)


def _deviation(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
