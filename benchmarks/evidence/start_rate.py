"""``python -m benchmarks.evidence.start_rate``: vSAM's rate after so many steps, by where it started.

Only the controller, on norms that fluctuate and have no trend: log-normal, so that "0.2" is the standard
deviation of their logarithm. Counted, not timed: it gives the same numbers everywhere.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from ausam_ext import RateController

from ..markdown import table as markdown
from .rows import Row, write

RESULTS = Path(__file__).parents[1] / "results/evidence/start_rate.json"
FLUCTUATIONS = (0.1, 0.2, 0.3)
STARTS = (1, 17)  # samples in the first window: the default, and a rate of 0.34
STEPS = (1000, 5000, 20_000)
SEEDS = range(3)


def rates(fluctuation: float, start: int, seed: int, steps: Sequence[int] = STEPS) -> list[float]:
    """The rate after each of the numbers of steps."""
    generator = torch.Generator().manual_seed(seed)
    controller = RateController(initial_samples=start)
    found = []
    for window in range(1, steps[-1] // controller.window + 1):
        for norm in torch.randn(int(controller.s), generator=generator).mul(fluctuation).exp().tolist():
            controller.observe(norm, 1.0)
        controller.update()
        if window in {each // controller.window for each in steps}:
            found.append(round(controller.rate, 3))
    return found


def table(rows: Sequence[Row]) -> str:
    """Markdown: lowest and highest rate over the seeds."""
    cells = [["started at", "fluctuation", *(f"{each:,} steps" for each in STEPS)]]
    for row in rows:
        ranges = [f"{min(each):.2f} to {max(each):.2f}" for each in zip(*row["rates"], strict=True)]
        cells.append([f"{row['start'] / 50:.2f}", f"{row['fluctuation']}", *ranges])
    return markdown(cells, 0)


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.evidence.start_rate", description=__doc__)
    p.add_argument("--output", type=Path, default=RESULTS, help="JSON that is written")
    path = p.parse_args().output
    rows = [
        {"start": start, "fluctuation": f, "rates": [rates(f, start, seed) for seed in SEEDS]}
        for start in STARTS
        for f in FLUCTUATIONS
    ]
    write(path, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
