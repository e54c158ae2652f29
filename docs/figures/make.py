"""Draws the figures of the pages on methods: `python docs/figures/make.py`, in the repository's root."""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from ausam_ext import ops  # noqa: E402
from benchmarks.figures import BLACK, BLUE, RED, png  # noqa: E402


def loss(w):
    """A narrow valley and a wide one of the same depth."""
    narrow = 1 - np.exp(-(((w + 1.2) / 0.28) ** 2))
    wide = 1 - np.exp(-(((w - 1.1) / 1.0) ** 2))
    return narrow * wide + 0.1


def sam() -> Figure:
    """A loss, and the highest loss within rho, which SAM minimises."""
    rho = 0.4
    x = np.linspace(-2.4, 3.4, 800)
    around = np.linspace(-rho, rho, 81)
    worst = loss(x[:, None] + around).max(1)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.plot(x, loss(x), color="0.6", linewidth=2, label="loss at w: two valleys of the same depth")
    ax.plot(x, worst, color=RED, linewidth=2, label="highest loss within rho of w: what SAM minimises")
    for w, text, x, y in ((-1.2, "sharp: high nearby", -2.5, 0.5), (1.1, "flat: low nearby", 0.75, 0.0)):
        height = loss(w + around).max()
        ax.plot(w, loss(w), "o", color=BLACK, markersize=8)
        ax.annotate("", (w, height), (w, loss(w)), arrowprops={"arrowstyle": "->", "color": BLUE, "lw": 2})
        ax.text(x, y, text, color=BLUE)
    ax.set_xlabel("weight w")
    ax.set_ylabel("loss")
    ax.set_ylim(-0.05, 1.5)
    ax.set_yticks([])
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", frameon=False)
    return figure


def ausam() -> Figure:
    """How often each sample of a batch is chosen, beside its weight."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(16, generator=generator).pow(2).sort().values
    draws, k = 20_000, 8
    chosen = ops.subset_sample(scores.expand(draws, 16).contiguous(), k, generator=generator)
    often = chosen.flatten().bincount(minlength=16) / draws
    weights = 0.1 + 0.9 * (scores - scores[0]) / (scores[-1] - scores[0])
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    ax = figure.subplots()
    places = np.arange(16)
    ax.bar(places - 0.2, weights, 0.4, color="0.7", label="weight, by score (Eq. 8)")
    ax.bar(places + 0.2, often, 0.4, color=BLUE, label="how often it is among the 8 that are trained on")
    ax.axhline(0.5, color=BLACK, linestyle=":", linewidth=1.5, label="a random half")
    ax.set_xticks(places, [str(i + 1) for i in places])
    ax.set_xlabel("the 16 samples of a batch, by score")
    ax.set_ylim(0, 1.3)
    ax.legend(loc="upper left", ncols=3, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    for draw in (sam, ausam):
        (HERE / f"{draw.__name__}.png").write_bytes(png(draw()))
