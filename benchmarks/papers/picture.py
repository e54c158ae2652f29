"""A table's accuracy as a picture: what is printed beside what was trained here."""

import re
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from ..figures import BLACK, BLUE, ORANGE, png

NUMBER = re.compile(r"[\d.]+")


def name(found: dict[str, Any]) -> str:
    """The method, what sets the row apart from others of it, and a star if it is quoted."""
    own = "".join(f", {k} {v}" for k, v in found["settings"].items())
    return found["method"] + own + ("" if found["quoted"] is None else "*")


def draw(lines: Sequence[dict[str, Any]]) -> bytes:
    """A panel for each network and data set, a line in it for each row that has a figure."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for found in lines:
        panels.setdefault(f"{found['network']}, {found['data']}", []).append(found)
    columns = min(2, max(1, len(panels)))
    heights = [max(len(p) for p in row) for row in _rows(list(panels.values()), columns)]
    figure = Figure(figsize=(7 * columns, 1 + sum(0.22 * height + 0.9 for height in heights)))
    grid = figure.subplots(len(heights) or 1, columns, squeeze=False, height_ratios=heights or None)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, (title, rows) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, title, rows)
    figure.tight_layout()
    return png(figure)


def _rows(panels: list[Any], columns: int) -> list[list[Any]]:
    return [panels[i : i + columns] for i in range(0, len(panels), columns)]


def _panel(axes: Any, title: str, rows: Sequence[dict[str, Any]]) -> None:
    for y, found in enumerate(rows):
        text = next((found["printed"][c] for c in ("accuracy", "mean") if c in found["printed"]), "")
        if printed := [float(number) for number in NUMBER.findall(text)]:
            style = {"color": ORANGE, "marker": "D", "linestyle": "none"}
            axes.errorbar(printed[0], y - 0.12, xerr=(printed[1:2] or [0])[0], **style, label="printed")
        for of, color, marker in (("best", BLACK, "|"), ("last", BLUE, "o")):
            if values := found[of]:
                off = stdev(values) if len(values) > 1 else 0
                axes.errorbar(
                    mean(values),
                    y + 0.12,
                    xerr=off if of == "last" else 0,
                    color=color,
                    marker=marker,
                    linestyle="none",
                    label=f"here, {of} epoch",
                )
    axes.set_yticks(range(len(rows)), map(name, rows))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("right answers, %" if rows[0]["data"] != "MPII" else "PCKh@0.5, %")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        axes.legend(handles.values(), handles.keys(), fontsize=7)
