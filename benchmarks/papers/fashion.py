"""``python -m benchmarks.papers.fashion``: chooses the settings of `run fashion`, on validation images.

Fashion-MNIST as it is: labels right, classes balanced, no augmentation. 10,000 of the first 50,000 training
images, drawn by the seed; a small network; 10 epochs, so that all methods with five seeds take about an hour
of one core.

Written down before anything was trained:

1. Settings are chosen on the last 10,000 training images, which nothing is trained on, after the last epoch,
   with the seeds 100 and 101. SAM gets the learning rate and rho of ``GRID`` with the highest mean accuracy,
   SGD the learning rate of it with the highest. The smaller one is taken of two that are level.
2. SAM's settings are those of all methods that perturb weights, SGD's those of the others (``UNPERTURBED``).
   What else a method has is the papers', in proportion to the length of the run (:mod:`.settings`): AUSAM's
   range is reached after 15 % of the epochs, vSAM takes the second pass at a constant rate of 0.34, SAF and
   MESA begin after the first epoch, and MESA's average is over as large a share of the run.
3. Then each method is trained with the seeds 0, 1, 2, ..., all methods with a seed before the next one, and
   its accuracy on the 10,000 test images reported, after the last epoch and in the best one. The number of
   seeds depends only on the time. All rows are shown.

The random half has a whole first epoch as AUSAM has; without it, it is a row too.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import runs
from ..job import Job
from ..methods import METHODS
from .published import STEPS, Row, recipe, setting
from .settings import settings

RESULTS = Path(__file__).parents[1] / "results/evidence/fashion_settings.json"
EPOCHS = 10
SIZE = 10_000
SEEDS = (100, 101)
RATES, RHOS = (0.05, 0.1), (0.05, 0.1)
GRID = {"SAM": [(rate, rho) for rate in RATES for rho in RHOS], "SGD": [(rate, 0.0) for rate in RATES]}
UNPERTURBED = ("SGD", "SGD+Info", "SAF", "MESA")
# Rows besides one for each method: a fair control, what docs/choosing.md adds, and the other value that is in
# use of LookSAM's alpha (that one was added after the rest had been looked at).
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "LookSAM-5": [{"alpha": 0.1}],
    "SAM+Random": [{"full_epochs": 1}],
    "AUSAM-0.5": [{"weighted": True}, {"score": "probability"}],
}


def rows() -> Iterator[Row]:
    for method in METHODS:
        if method != "Adam":
            for own in ({}, *VARIANTS.get(method, [])):
                yield Row(method, "small CNN", "Fashion-MNIST", None, {}, own)


def job(row: Row, seed: int, epochs: int | None, made: bool, whole: bool = False) -> Job:
    """``whole``: on all 60,000 training images."""
    rate, rho = chosen()["SGD" if row.method in UNPERTURBED else "SAM"]
    epochs = epochs or (2 if made else EPOCHS)
    share = epochs / recipe("epochs", row.network)
    own = {**settings(row.method, row, share), **row.settings}
    size = None if made or whole else SIZE
    found = _job(row.method, seed, rate, rho, epochs=epochs, size=size, settings=own, made=made)
    if row.method == "MESA":
        steps = epochs * -(-(size or 60_000) // found.batch_size)
        own["decay"] = round(1 - (1 - setting("MESA", "ema_decay")) * max(1, STEPS / steps), 4)
    return replace(found, batch_size=32) if made else found


def _job(method: str, seed: int, rate: float, rho: float, **others: Any) -> Job:
    decay = recipe("weight_decay", "PyramidNet-110")  # 5e-4
    return Job(
        method,
        "small CNN",
        "Fashion-MNIST",
        seed,
        **others,
        batch_size=128,
        learning_rate=rate,
        weight_decay=decay,
        rho=rho,
    )


def trials() -> list[Job]:
    """What settings are chosen from, seed by seed."""
    return [
        _job(method, seed, rate, rho, epochs=EPOCHS, size=SIZE, validation=True)
        for seed in SEEDS
        for method, grid in GRID.items()
        for rate, rho in grid
    ]


def trial_rows(out: Path) -> list[dict[str, Any]]:
    """For each pair of settings its accuracies on validation images, after the last epoch."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for each in trials():
        record = runs.done(each, out)
        assert record is not None
        pair = {"method": each.method, "learning_rate": each.learning_rate, "rho": each.rho}
        row = found.setdefault(tuple(pair.values()), {**pair, "seeds": [], "accuracy": []})
        row["seeds"].append(each.seed)
        row["accuracy"].append(round(record["accuracy"][-1], 2))
    return list(found.values())


def chosen(tried: Sequence[dict[str, Any]] | None = None) -> dict[str, tuple[float, float]]:
    """Learning rate and rho, SAM's and SGD's, by the rule."""
    tried = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if tried is None else tried
    best = {}
    for method in GRID:
        of = sorted((r for r in tried if r["method"] == method), key=lambda r: (r["learning_rate"], r["rho"]))
        row = max(of, key=lambda r: statistics.mean(r["accuracy"]))
        best[method] = (row["learning_rate"], row["rho"])
    return best


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.papers.fashion", description=__doc__.split(": ", 1)[1]
    )
    p.add_argument("--data", type=Path, default=Path("data"), help="folder with a folder per data set")
    p.add_argument("--out", type=Path, default=Path("papers-results"), help="where the runs are kept")
    options = p.parse_args()
    torch.set_num_threads(1)
    runs.run(trials(), options.data, options.out, torch.device("cpu"))
    lines = ",\n  ".join(map(json.dumps, trial_rows(options.out)))
    RESULTS.write_text(f'{{"rows": [\n  {lines}\n ]}}\n', encoding="utf-8")
    print(chosen())


if __name__ == "__main__":
    main()
