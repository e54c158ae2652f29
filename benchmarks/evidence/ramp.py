"""``python -m benchmarks.evidence.ramp``: vSAM's rate over a run as long as the papers'.

78,200 steps: three epochs of SAM, then 1,540 windows of 50. The norms of the PSF have no trend and fluctuate
log-normally; "0.1" is the standard deviation of their logarithm. The mean of relative changes of such a
series is above 0, so that the rate climbs. How fast depends only on the fluctuation: what is asked is which
one gives as many second passes as the papers print. Counted, not timed: the same numbers everywhere.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ausam_ext import RateController

from ..figures import STYLES, png
from ..markdown import table as markdown
from ..papers import published
from .rows import Row, write

RESULTS = Path(__file__).parents[1] / "results/evidence/ramp.json"
FLUCTUATIONS = (0.05, 0.1, 0.14, 0.16, 0.2, 0.3)
SEEDS = range(3)
WARMUP = 3 * 391  # steps of the first three epochs, all with two passes
WINDOWS = (published.STEPS - WARMUP) // 50
EVERY = 20  # windows, of which the rate is kept


def ramp(fluctuation: float, seed: int) -> tuple[list[float], int]:
    """The rate every ``EVERY`` windows, and the number of steps with two passes in the whole run."""
    generator = torch.Generator().manual_seed(seed)
    controller, rates, taken = RateController(), [], WARMUP

    def observe(samples: int) -> None:
        for norm in torch.randn(samples, generator=generator).mul(fluctuation).exp().tolist():
            controller.observe(norm, 1.0)

    observe(controller.window)  # of the warm-up, those that are still looked at when it ends
    for window in range(WINDOWS):
        if window % EVERY == 0:
            rates.append(round(controller.rate, 4))
        observe(int(controller.s))
        taken += int(controller.s)
        controller.update()
    return rates, taken


def printed() -> dict[str, int]:
    """Steps with two passes of vSAM's own runs in its Table 3."""
    own = [row for row in published.rows("vsam-3") if row.method == "vSAM"]
    return {f"{row.network}, {row.dataset}": int(row.printed["sam_steps"]) for row in own}


def table(rows: Sequence[Row]) -> str:
    """Markdown: second passes, lowest and highest of the seeds, and the average rate."""
    cells = [["fluctuation", "steps with two passes, of 78,200", "rate, on average"]]
    for row in rows:
        low, high = min(row["taken"]), max(row["taken"])
        share = sum(row["taken"]) / len(row["taken"]) / published.STEPS
        cells.append([f"{row['fluctuation']}", f"{low:,} to {high:,}", f"{share:.2f}"])
    return markdown(cells, 0)


def draw(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(7, 3.6))
    ax = figure.add_subplot()
    for row, (color, _) in zip(rows, STYLES, strict=True):
        for i, rates in enumerate(row["rates"]):
            label = f"{row['fluctuation']}" if i == 0 else None
            ax.plot([EVERY * k for k in range(len(rates))], rates, color=color, linewidth=1.2, label=label)
    ax.axhline(0.8, color="#999999", linewidth=0.8, linestyle=":")
    ax.set_xlabel("window of 50 steps")
    ax.set_ylabel("rate of second passes")
    ax.set_ylim(0, 0.85)
    ax.legend(title="fluctuation", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.set_title("vSAM's controller on norms without a trend", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.evidence.ramp", description=__doc__)
    p.add_argument("--output", type=Path, default=RESULTS, help="JSON that is written, beside a picture")
    path = p.parse_args().output
    rows = []
    for fluctuation in FLUCTUATIONS:
        runs = [ramp(fluctuation, seed) for seed in SEEDS]
        rows.append(
            {"fluctuation": fluctuation, "taken": [t for _, t in runs], "rates": [rates for rates, _ in runs]}
        )
    write(path, rows)
    path.with_suffix(".png").write_bytes(png(draw(rows)))
    print(table(rows))
    print(printed())


if __name__ == "__main__":
    main()
