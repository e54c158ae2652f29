"""What came out, as tables and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from ..job import Job
from ..markdown import table
from ..spread import paired, spread
from .compare import Run

HEADER = (
    "Method",
    "Test accuracy, %",
    "minus SAM",
    "minus SAM+Random",
    "Samples, of SAM's",
    "Speed, SAM%",
)
BASES = ("SAM", "SAM+Random")  # what accuracies are compared with

Group = dict[str, list[Run]]  # of one data set, by method, each in the order of seeds


def grouped(runs: Sequence[Run]) -> dict[str, Group]:
    """By data set."""
    groups: dict[str, Group] = {}
    for run in runs:
        groups.setdefault(run.data, {}).setdefault(run.method, []).append(run)
    return groups


def robust_seconds(runs: Sequence[Run]) -> float:
    """Time of a training: each epoch's median over the seeds, summed, so that a busy moment drops out."""
    return sum(median(times) for times in zip(*(run.seconds for run in runs), strict=True))


def sam_percent(group: Group) -> dict[str, float]:
    """SAM's time over each method's, in percent; empty if SAM was not run."""
    if "SAM" not in group:
        return {}
    return {
        method: 100 * robust_seconds(group["SAM"]) / robust_seconds(runs) for method, runs in group.items()
    }


def text(runs: Sequence[Run]) -> str:
    """Markdown that also reads well as text: a table for each data set, and how to read them."""
    parts = []
    for data, group in grouped(runs).items():
        epochs = len(next(iter(group.values()))[0].seconds)
        parts.append(f"{data[0].upper()}{data[1:]}, {epochs} epochs:\n\n{_table(group)}")
    seeds = 1 + max(run.seed for run in runs)
    told = f"Seeds: {seeds}" + (" (mean ± standard deviation)." if seeds > 1 else ".")
    parts.append(
        f"{told} Differences are paired; in brackets, in how many seeds the method is above. "
        "Samples: through forward and backward. Speed: SAM's time over the method's.\n"
    )
    return "\n".join(parts)


def _table(group: Group) -> str:
    speeds, cells = sam_percent(group), [HEADER]
    for method, runs in group.items():
        against = []
        for base in BASES:
            compared = base in group and base != method
            against.append(paired(differences(runs, group[base])) if compared else "-")
        share = f"{samples_of_sam(runs, group):.2f}" if "SAM" in group else "-"
        speed = f"{speeds[method]:.0f}" if speeds else "-"
        cells.append((method, spread([run.accuracy for run in runs]), *against, share, speed))
    return table(cells, left=1)


def differences(runs: Sequence[Run], others: Sequence[Run]) -> list[float]:
    """Of accuracy, seed by seed."""
    return [run.accuracy - other.accuracy for run, other in zip(runs, others, strict=True)]


def samples_of_sam(runs: Sequence[Run], group: Group) -> float:
    return sum(run.samples for run in runs) / sum(run.samples for run in group["SAM"])


def write(path: Path, configuration: dict[str, Any], jobs: Sequence[Job], runs: Sequence[Run]) -> None:
    """One line for each job, with seed 0, and for each run."""

    def lines(items: Sequence[dict[str, Any]]) -> str:
        return ",\n  ".join(json.dumps(item) for item in items)

    path.write_text(
        f'{{"configuration": {json.dumps(configuration)},\n'
        f' "jobs": [\n  {lines([job.as_dict() for job in jobs])}\n ],\n'
        f' "runs": [\n  {lines([asdict(run) for run in runs])}\n ]}}\n',
        encoding="utf-8",
    )


def read(path: Path) -> list[Run]:
    return [Run(**run) for run in json.loads(path.read_text(encoding="utf-8"))["runs"]]
