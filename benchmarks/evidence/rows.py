"""Results as rows of a JSON file: a method with its settings, and what came out, seed by seed."""

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import ausam_ext

from ..job import Job
from ..runs import write_whole
from .tasks import training

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def write(path: Path, rows: Iterable[Row]) -> None:
    """One line each, and what they were measured with."""
    where = {"torch": torch.__version__, "ausam_ext": ausam_ext.__version__, "machine": platform.machine()}
    lines = ",\n  ".join(map(json.dumps, rows))
    text = f'{{"environment": {json.dumps(where)},\n "rows": [\n  {lines}\n ]}}\n'
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def fill(
    path: Path, planned: Iterable[tuple[Row, Job, Sequence[int]]], data: Path, title: str = ""
) -> list[Row]:
    """Trains what is missing in the file, which after each run holds all that was done.

    ``planned``: what a row begins with, its job and its seeds.
    """
    rows = read(path) if path.exists() else []
    todo = []
    for key, job, seeds in planned:
        row = next((row for row in rows if key.items() <= row.items()), None)
        if row is None:
            row = {**key, "seeds": [], "accuracy": [], "samples": []}
            rows.append(row)
        todo += [(row, replace(job, seed=seed)) for seed in seeds if seed not in row["seeds"]]
    # Seed by seed: what is there when it is stopped compares all methods.
    todo.sort(key=lambda item: item[1].seed)
    for row, job in tqdm(todo, desc=title, unit=" runs"):
        run = training(job, data)
        for _ in run.steps():
            pass
        row["seeds"].append(job.seed)
        row["accuracy"].append(round(run.progress.accuracy[-1], 4))
        row["samples"].append(run.counts.backward_samples)
        write(path, (row for row in rows if row["seeds"]))
    return rows


def difference(row: Row, other: Row) -> list[float]:
    """Row minus other, seed by seed."""
    theirs = dict(zip(other["seeds"], other["accuracy"], strict=True))
    return [a - theirs[seed] for seed, a in zip(row["seeds"], row["accuracy"], strict=True) if seed in theirs]
