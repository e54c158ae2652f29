"""What came out, as a table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from .training import BATCH_SIZE, Run

HEADER = (
    "Method",
    "Test accuracy, %",
    "Time, s",
    "Speed, SAM%",
    "Samples forward-backward",
    "of SAM's",
    "Full-batch passes",
)


@dataclass
class Row:
    """A method over all seeds; what compares it with SAM is None where SAM was not run."""

    method: str
    accuracy: float
    accuracy_std: float | None  # None for a single seed
    seconds: float
    sam_percent: float | None
    samples: float
    samples_of_sam: float | None
    passes: float


def summarize(runs: Sequence[Run]) -> list[Row]:
    """One row for each method, in the order of ``runs``."""
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    seconds = {method: robust_seconds(group) for method, group in by_method.items()}
    samples = {method: mean(run.samples for run in group) for method, group in by_method.items()}
    rows = []
    for method, group in by_method.items():
        accuracies = [run.accuracy for run in group]
        rows.append(
            Row(
                method=method,
                accuracy=mean(accuracies),
                accuracy_std=stdev(accuracies) if len(group) > 1 else None,
                seconds=seconds[method],
                sam_percent=100 * seconds["SAM"] / seconds[method] if "SAM" in seconds else None,
                samples=samples[method],
                samples_of_sam=samples[method] / samples["SAM"] if "SAM" in samples else None,
                passes=samples[method] / BATCH_SIZE,
            )
        )
    return rows


def robust_seconds(group: Sequence[Run]) -> float:
    """Time of a training: each epoch's median over the seeds, summed, so that a busy moment drops out."""
    return sum(median(times) for times in zip(*(run.seconds for run in group), strict=True))


def table(rows: Sequence[Row]) -> str:
    """A Markdown table that also reads well as text."""
    cells = [
        HEADER,
        *(
            (
                row.method,
                f"{row.accuracy:.2f}" + ("" if row.accuracy_std is None else f" ± {row.accuracy_std:.2f}"),
                f"{row.seconds:.2f}",
                "-" if row.sam_percent is None else f"{row.sam_percent:.0f}",
                f"{row.samples:,.0f}",
                "-" if row.samples_of_sam is None else f"{row.samples_of_sam:.2f}",
                f"{row.passes:,.1f}",
            )
            for row in rows
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in cells
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def caption(seeds: int, epochs: int) -> str:
    """How to read the table."""
    spread = " (mean ± standard deviation)" if seeds > 1 else ""
    return (
        f"Seeds: {seeds}{spread}. Epochs: {epochs}. Full batch: {BATCH_SIZE} samples. "
        "Speed: SAM's time divided by the method's.\n"
    )


def write_json(path: Path, configuration: dict[str, Any], rows: Sequence[Row], runs: Sequence[Run]) -> None:
    """The configuration, the table's numbers, and those of every seed."""
    methods = [
        {
            **asdict(row),
            "seeds": [
                {
                    "seed": run.seed,
                    "accuracy": run.accuracy,
                    "seconds": sum(run.seconds),
                    "samples": run.samples,
                    "steps": len(run.sampled),
                    "two_pass_steps": sum(run.sampled),
                }
                for run in runs
                if run.method == row.method
            ],
        }
        for row in rows
    ]
    path.write_text(json.dumps({"configuration": configuration, "methods": methods}, indent=2) + "\n")
