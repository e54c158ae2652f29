"""``python -m benchmarks.evidence.accuracy``: accuracy of all methods on small tasks, paired over seeds.

It goes on where it was stopped.

Written down before the first run on test images, and in this order:

1. ``settings``: a task's settings are kept unless, on validation images, SAM does better with half or twice
   the learning rate, rho or epochs, by more than two standard errors of the paired difference over its
   seeds; then the best of those is taken. All methods use SAM's.
2. ``validation``: a choice in proportion to the scores is worth an argument of its own if, weighted, it is
   better than weighted AUSAM by more than two standard errors in one task at least, and in none worse by as
   much.
3. ``test``: every method, every seed, after the last epoch. All rows are shown.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..job import Job
from ..markdown import table
from ..spread import paired, spread, standard_errors
from .rows import Row, difference, fill, read
from .tasks import COMPARED, DATA, TASKS, with_method

RESULTS = Path(__file__).parents[1] / "results/evidence/accuracy.json"
SEEDS = {"settings": range(100, 105), "validation": range(100, 110), "test": range(10)}
PARTS = tuple(SEEDS)
PROPORTIONAL = ("AUSAM, proportional, weighted", "AUSAM, weighted")
VALIDATED = PROPORTIONAL[::-1]
NAMES = tuple(name for name in TASKS if name != "Fashion-MNIST")  # which takes three times as long


def plan(part: str, name: str, rows: Sequence[Row]) -> Iterator[tuple[Row, Job, range]]:
    """Rows that are to be filled, of which the file has some."""
    if part == "settings":
        runs = [("SAM", setting) for setting in settings(TASKS[name])]
    else:
        setting = chosen(rows, name)
        runs = [(method, setting) for method in (COMPARED if part == "test" else VALIDATED)]
    for method, setting in runs:
        row: Row = {"part": part, "task": name, "method": method}
        row |= {key: getattr(setting, key) for key in ("epochs", "learning_rate", "rho")}
        yield row, replace(with_method(setting, method), validation=part != "test"), SEEDS[part]


def chosen(rows: Sequence[Row], name: str) -> Job:
    """The task with the settings that validation says."""
    first, *others = [row for row in rows if row["part"] == "settings" and row["task"] == name]
    clearly = [row for row in others if standard_errors(difference(row, first)) > 2]
    best = max(clearly, key=lambda row: statistics.mean(row["accuracy"]), default=first)
    return replace(TASKS[name], **{key: best[key] for key in ("epochs", "learning_rate", "rho")})


def settings(task: Job) -> list[Job]:
    """The task's own first, then what it is compared with."""
    around = [
        replace(task, learning_rate=a * task.learning_rate, rho=b * task.rho)
        for a in (0.5, 1, 2)
        for b in (0.5, 1, 2)
    ]
    around += [replace(task, epochs=task.epochs // 2), replace(task, epochs=task.epochs * 2)]
    return [task] + [setting for setting in around if setting != task]


def run(path: Path, names: Sequence[str], data: Path, parts: Sequence[str] = PARTS) -> list[Row]:
    """Runs what is missing in the file."""
    rows = read(path) if path.exists() else []
    for part in PARTS:
        if part in parts:
            rows = fill(path, (each for name in names for each in plan(part, name, rows)), data, part)
    return rows


def test_table(rows: Sequence[Row], task: str) -> str:
    """Markdown: every method on the test images."""
    of = {row["method"]: row for row in rows if row["part"] == "test" and row["task"] == task}
    cells = [["Method", "Test accuracy, %", "minus SAM", "minus random half", "samples / SAM's"]]
    for method, row in of.items():
        against = [
            "" if method == other else paired(difference(row, of[other])) for other in ("SAM", "Random half")
        ]
        share = statistics.mean(row["samples"]) / statistics.mean(of["SAM"]["samples"])
        cells.append([method, spread(row["accuracy"]), *against, f"{share:.2f}"])
    return table(cells, 1)


def validation_table(rows: Sequence[Row]) -> str:
    """Markdown: the choice in proportion to scores, and the other halves, on validation images."""
    cells = [["Task", *VALIDATED, "difference", "standard errors"]]
    for task in TASKS:
        of = {row["method"]: row for row in rows if row["part"] == "validation" and row["task"] == task}
        if of:
            one, other = (of[method] for method in PROPORTIONAL)
            errors = f"{standard_errors(difference(one, other)):+.1f}"
            accuracies = [spread(of[method]["accuracy"]) for method in VALIDATED]
            cells.append([task, *accuracies, paired(difference(one, other)), errors])
    return table(cells, 1)


def settings_table(rows: Sequence[Row]) -> str:
    """Markdown: SAM's settings on validation images, the first of each task the one that it began with."""
    cells = [["Task", "epochs", "learning rate", "rho", "SAM, %", "minus the first", "standard errors"]]
    for task in TASKS:
        of = [row for row in rows if row["part"] == "settings" and row["task"] == task]
        for row in of:
            d = difference(row, of[0])
            against = ["", ""] if row is of[0] else [spread(d, "+"), f"{standard_errors(d):+.1f}"]
            numbers = [str(row["epochs"]), f"{row['learning_rate']:g}", f"{row['rho']:g}"]
            cells.append([task, *numbers, spread(row["accuracy"]), *against])
    return table(cells, 1)


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.accuracy", description=__doc__.splitlines()[0]
    )
    p.add_argument("--output", type=Path, default=RESULTS, help="JSON that is continued")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    p.add_argument("--tasks", nargs="+", choices=TASKS, default=NAMES)
    p.add_argument("--data", type=Path, default=DATA, help="folder with Fashion-MNIST, if that is a task")
    options = p.parse_args()
    torch.set_num_threads(1)
    rows = run(options.output, options.tasks, options.data, options.parts)
    print(f"{settings_table(rows)}\n{validation_table(rows)}")
    for task in options.tasks:
        print(f"{task}\n\n{test_table(rows, task)}")


if __name__ == "__main__":
    main()
