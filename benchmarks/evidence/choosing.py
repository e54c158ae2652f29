"""``python -m benchmarks.evidence.choosing``: fills docs/choosing.md and docs/measurements.md."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from ..markdown import filled
from ..spread import standard_errors
from . import accuracy, bounded, gradient_error, ramp, rho, start_rate
from .rows import Row, difference, read

PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("choosing.md", "measurements.md")]


def blocks() -> dict[str, str]:
    """What is between the pages' markers, by name."""
    runs, errors, rates = (read(module.RESULTS) for module in (accuracy, gradient_error, start_rate))
    tested = dict.fromkeys(row["task"] for row in runs if row["part"] == "test")
    return {
        "rho": "\n" + rho.table(read(rho.RESULTS)) + "\n",
        "rates": "\n" + start_rate.table(rates) + "\n",
        "ramp": "\n" + ramp.table(read(ramp.RESULTS)) + "\n",
        "bounded": "\n" + bounded.table(read(bounded.RESULTS)) + "\n",
        "errors": _titled({row["task"]: gradient_error.table(errors, row["task"]) for row in errors}),
        "accuracy": _titled(
            {f"{task}, {seeds(runs, task)}": accuracy.test_table(runs, task) for task in tested}
        ),
        "proportional": f"\n{accuracy.validation_table(runs)}\n{verdict(runs)}\n\n",
        "settings": "\n" + accuracy.settings_table(runs) + "\n",
    }


def seeds(rows: Sequence[Row], task: str) -> str:
    """How many, and with which settings."""
    of = [row for row in rows if row["part"] == "test" and row["task"] == task]
    counts = sorted({len(row["seeds"]) for row in of})
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    epochs, rate, radius = (of[0][name] for name in ("epochs", "learning_rate", "rho"))
    return f"{many} seeds, {epochs} epochs, learning rate {rate:g}, rho {radius:g}"


def verdict(rows: Sequence[Row]) -> str:
    """What the rule of `benchmarks.evidence.accuracy` says of a choice in proportion to the scores."""
    found = {}
    for task in dict.fromkeys(row["task"] for row in rows if row["part"] == "validation"):
        of = {r["method"]: r for r in rows if r["part"] == "validation" and r["task"] == task}
        found[task] = difference(*(of[method] for method in accuracy.PROPORTIONAL))
    errors = [standard_errors(d) for d in found.values()]
    mean = statistics.mean(statistics.mean(d) for d in found.values())
    borne_out = max(errors) > 2 and min(errors) > -2
    return (
        f"Proportional minus Eq. 8, over all tasks: {mean:+.2f}; from {min(errors):+.1f} to "
        f"{max(errors):+.1f} standard errors. By the rule it {'gets' if borne_out else 'does not get'} "
        "its own argument."
    )


def _titled(tables: dict[str, str]) -> str:
    parts = (f"{title[0].upper()}{title[1:]}:\n\n{table}" for title, table in tables.items())
    return "\n" + "\n".join(parts) + "\n"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), blocks()), encoding="utf-8")
