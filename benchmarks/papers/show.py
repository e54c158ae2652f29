"""A table of the papers beside what was trained here: printed, ours, the limit of the method's cost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..job import Job
from ..markdown import table as markdown_table
from ..spread import spread
from . import picture
from .published import Row, methods, tables

OUR_TABLE = "Every method on Fashion-MNIST, with a small network."
TRAINED_WITH = ("epochs", "batch_size", "learning_rate", "weight_decay", "rho", "settings", "size")


def limit(row: Row) -> float | None:
    """The speed that the method's cost allows, in percent of SAM's: 600 over its cost."""
    known = methods()["methods"]
    cost: Any = 6 * row.settings.get("alpha", 0.5) if row.method == "AUSAM" else None
    if row.method.startswith("AUSAM-"):
        cost = 6 * float(row.method.removeprefix("AUSAM-"))
    if cost is None and row.method in known:
        cost = known[row.method].get("value")
    if isinstance(cost, dict):  # by network, or by another setting whose first is the default
        cost = cost.get(row.network, next(iter(cost.values())))
    return round(600 / cost, 1) if isinstance(cost, (int, float)) and cost else None


def line(row: Row, jobs: Sequence[Job], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is known of a row; what was trained is in lists, one entry per seed.

    "forward" and "backward" count samples in passes of the network in training; "seconds" are of training.
    """
    found: dict[str, Any] = {
        "method": row.method,
        "network": row.network,
        "data": row.dataset,
        "settings": row.settings,
        "printed": row.printed,
        "quoted": row.footnote,
        "limit, SAM%": limit(row),
        "trained with": {name: getattr(jobs[0], name) for name in TRAINED_WITH},
        "seeds": [r["job"]["seed"] for r in records],
        "last": [round(r["accuracy"][-1], 2) for r in records],
        "best": [round(max(r["accuracy"]), 2) for r in records],
        "steps": [r["counts"]["steps"] for r in records],
        "second passes": [r["second_passes"] for r in records],
        "forward": [r["counts"]["forward_samples"] for r in records],
        "backward": [r["counts"]["backward_samples"] for r in records],
        "seconds": [round(sum(r["seconds"]), 3) for r in records],
        "fastest epoch": [round(min(r["seconds"]), 2) for r in records],
    }
    return found


def markdown(table: str, lines: Sequence[dict[str, Any]]) -> str:
    """The table for a reader."""
    columns = list(tables()[table]["columns"]) if table in tables() else []
    head = ["Method", "Network", "Data", *(f"{c}, printed" for c in columns), "last epoch", "best epoch"]
    head += ["seeds", "second passes", "limit, SAM%"]
    title = f"{tables()[table]['number']}: {tables()[table]['caption']}" if table in tables() else OUR_TABLE
    cells = [head]
    for found in lines:
        cells.append([picture.name(found), found["network"], found["data"]])
        cells[-1] += [found["printed"].get(c, "") for c in columns]
        cells[-1] += [spread(found[key]) if found["seeds"] else "" for key in ("last", "best")]
        taken, steps = sum(found["second passes"]), sum(found["steps"])
        cells[-1] += [str(len(found["seeds"])), f"{taken / steps:.3f}" if steps else ""]
        cells[-1] += [str(found["limit, SAM%"] or "")]
    notes = dict.fromkeys(found["quoted"] for found in lines if found["quoted"])
    below = f"\n*: {'; '.join(notes)}\n" if notes else ""
    return f"{title}\n\n{markdown_table(cells, left=3)}{below}"


def write(table: str, lines: Sequence[dict[str, Any]], out: Path) -> None:
    """``TABLE.md``, ``TABLE.json`` and ``TABLE.png``."""
    (out / f"{table}.md").write_text(markdown(table, lines), encoding="utf-8")
    text = "[\n " + ",\n ".join(json.dumps(found, ensure_ascii=False) for found in lines) + "\n]\n"
    (out / f"{table}.json").write_text(text, encoding="utf-8")
    (out / f"{table}.png").write_bytes(picture.draw(lines))
