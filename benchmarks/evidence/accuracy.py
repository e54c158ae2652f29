"""``python -m benchmarks.evidence.accuracy``: accuracy of all methods on small tasks, paired over seeds.

It goes on where it was stopped.

Written down before the first run on test images, and in this order:

1. ``settings``: a task's settings are kept unless, on validation images, SAM does better with half or twice
   the learning rate, rho or epochs, by more than two standard errors of the paired difference over
   ``SETTING_SEEDS``; then the best of those is taken. All methods use SAM's.
2. ``validation``: a choice in proportion to the scores is worth an argument of its own if, weighted, it is
   better than weighted AUSAM by more than two standard errors over ``VALIDATION_SEEDS`` in one task at least,
   and in none worse by as much.
3. ``test``: every method, every seed, after the last epoch. All rows are shown.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import ausam_ext
from ausam_ext.demo.data import Images

from ..spread import spread, standard_errors
from .tasks import TASKS, Task
from .variants import VARIANTS, train

RESULTS = Path(__file__).parents[1] / "results/evidence/accuracy.json"
SETTING_SEEDS = range(100, 105)
VALIDATION_SEEDS = range(100, 110)
TEST_SEEDS = range(10)
PROPORTIONAL = ("AUSAM, proportional, weighted", "AUSAM, weighted")
VALIDATED = PROPORTIONAL[::-1]
PARTS = ("settings", "validation", "test")
NAMES = (
    "digits",
    "digits, a quarter wrong",
    "digits, long-tailed",
)  # Fashion-MNIST takes three times as long

Row = dict[str, Any]  # a method with its settings, and what came out, seed by seed


def plan(part: str, name: str, rows: Sequence[Row]) -> Iterator[tuple[Row, Task, range]]:
    """Rows that are to be filled, of which the file has some."""
    if part == "settings":
        runs = [("SAM", setting) for setting in settings(TASKS[name])]
    else:
        setting = chosen(rows, name)
        runs = [(method, setting) for method in (VARIANTS if part == "test" else VALIDATED)]
    seeds = {"settings": SETTING_SEEDS, "validation": VALIDATION_SEEDS, "test": TEST_SEEDS}[part]
    for method, setting in runs:
        row: Row = {"part": part, "task": name, "method": method}
        row |= {key: getattr(setting, key) for key in ("epochs", "learning_rate", "rho")}
        yield row, setting, seeds


def chosen(rows: Sequence[Row], name: str) -> Task:
    """The task with the settings that validation says."""
    first, *others = [row for row in rows if row["part"] == "settings" and row["task"] == name]
    clearly = [row for row in others if standard_errors(difference(row, first)) > 2]
    best = max(clearly, key=lambda row: statistics.mean(row["accuracy"]), default=first)
    return replace(TASKS[name], **{key: best[key] for key in ("epochs", "learning_rate", "rho")})


def settings(task: Task) -> list[Task]:
    """The task's own first, then what it is compared with."""
    around = [
        replace(task, learning_rate=a * task.learning_rate, rho=b * task.rho)
        for a in (0.5, 1, 2)
        for b in (0.5, 1, 2)
    ]
    around += [replace(task, epochs=task.epochs // 2), replace(task, epochs=task.epochs * 2)]
    return [task] + [setting for setting in around if setting != task]


def run(path: Path, names: Sequence[str], parts: Sequence[str] = PARTS) -> list[Row]:
    """Runs what is missing in the file, which after each run holds all that was done."""
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    for part in parts:
        todo = []
        for key, task, seeds in (each for name in names for each in plan(part, name, rows)):
            row = next((row for row in rows if key.items() <= row.items()), None)
            if row is None:
                row = {**key, "seeds": [], "accuracy": [], "samples": []}
                rows.append(row)
            todo += [(row, task, seed) for seed in seeds if seed not in row["seeds"]]
        # Seed by seed: what is there when it is stopped compares all methods.
        todo.sort(key=lambda item: item[2])
        for row, task, seed in tqdm(todo, desc=part, unit=" runs"):
            train_set, test_set = task.split(seed, part != "test")
            model, _, samples = train(VARIANTS[row["method"]], task, train_set, seed)
            row["seeds"].append(seed)
            row["accuracy"].append(accuracy(model, test_set))
            row["samples"].append(samples)
            save(path, rows)
    return rows


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Images) -> float:
    """Images that are recognised, in percent."""
    model.eval()
    return round(100 * (model(images.x).argmax(1) == images.y).double().mean().item(), 4)


def save(path: Path, rows: Sequence[Row]) -> None:
    where = {"torch": torch.__version__, "ausam_ext": ausam_ext.__version__, "machine": platform.machine()}
    lines = ",\n  ".join(json.dumps(row) for row in rows if row["seeds"])
    part = path.with_suffix(".part")
    part.write_text(f'{{"environment": {json.dumps(where)},\n "rows": [\n  {lines}\n ]}}\n', encoding="utf-8")
    os.replace(part, path)


def difference(row: Row, other: Row) -> list[float]:
    """Row minus other, seed by seed."""
    theirs = dict(zip(other["seeds"], other["accuracy"], strict=True))
    return [a - theirs[seed] for seed, a in zip(row["seeds"], row["accuracy"], strict=True) if seed in theirs]


def test_table(rows: Sequence[Row], task: str) -> str:
    """Markdown: every method on the test images."""
    of = {row["method"]: row for row in rows if row["part"] == "test" and row["task"] == task}
    lines = [
        "| Method | Test accuracy, % | minus SAM | minus random half | samples / SAM's |",
        "|---|---:|---:|---:|---:|",
    ]
    for method, row in of.items():
        against = []
        for other in ("SAM", "Random half"):
            d = difference(row, of[other])
            above = f"{spread(d, '+')} ({sum(x > 0 for x in d)} of {len(d)})"
            against.append("" if method == other else above)
        share = statistics.mean(row["samples"]) / statistics.mean(of["SAM"]["samples"])
        lines.append(f"| {method} | {spread(row['accuracy'])} | {' | '.join(against)} | {share:.2f} |")
    return "\n".join(lines) + "\n"


def validation_table(rows: Sequence[Row]) -> str:
    """Markdown: the choice in proportion to scores, and the other halves, on validation images."""
    lines = [f"| Task | {' | '.join(VALIDATED)} | difference | standard errors |", "|---|" + "---:|" * 4]
    for task in TASKS:
        of = {row["method"]: row for row in rows if row["part"] == "validation" and row["task"] == task}
        if of:
            d = difference(of[PROPORTIONAL[0]], of[PROPORTIONAL[1]])
            cells = [spread(of[method]["accuracy"]) for method in VALIDATED]
            cells += [f"{spread(d, '+')} ({sum(x > 0 for x in d)} of {len(d)})", f"{standard_errors(d):+.1f}"]
            lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def settings_table(rows: Sequence[Row]) -> str:
    """Markdown: SAM's settings on validation images, the first of each task the one that is used."""
    lines = [
        "| Task | epochs | learning rate | rho | SAM, % | minus the first | standard errors |",
        "|---|" + "---:|" * 6,
    ]
    for task in TASKS:
        of = [row for row in rows if row["part"] == "settings" and row["task"] == task]
        for row in of:
            cells = [
                task,
                row["epochs"],
                f"{row['learning_rate']:g}",
                f"{row['rho']:g}",
                spread(row["accuracy"]),
            ]
            d = difference(row, of[0])
            cells += ["", ""] if row is of[0] else [spread(d, "+"), f"{standard_errors(d):+.1f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.accuracy", description=__doc__.splitlines()[0]
    )
    p.add_argument("--output", type=Path, default=RESULTS, help="JSON that is continued")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    p.add_argument("--tasks", nargs="+", choices=TASKS, default=NAMES)
    options = p.parse_args()
    torch.set_num_threads(1)
    rows = run(options.output, options.tasks, options.parts)
    print(f"{settings_table(rows)}\n{validation_table(rows)}")
    for task in TASKS:
        print(f"{task}\n\n{test_table(rows, task)}")


if __name__ == "__main__":
    main()
