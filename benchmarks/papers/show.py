"""A table of the papers beside what was trained here: printed, ours, the limit of the method's cost."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..job import Job
from ..spread import spread
from .published import Row, methods, tables

OUR_TABLE = "Every method on Fashion-MNIST, with a small network."
OURS = ("last", "best", "runs", "second passes")


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
    """What stands in a line of the table."""
    found: dict[str, Any] = {
        "method": row.method,
        "network": row.network,
        "data": row.dataset,
        "settings": row.settings,
        "printed": row.printed,
        "quoted": row.footnote,
        "limit, SAM%": limit(row),
        "runs": len(records),
    }
    if records:
        last, best = ([pick(r["accuracy"]) for r in records] for pick in (lambda a: a[-1], max))
        found["last"], found["best"] = spread(last), spread(best)
        shares = [r["second_passes"] / r["counts"]["steps"] for r in records]
        found["second passes"] = round(statistics.mean(shares), 3)
    return found


def markdown(table: str, lines: Sequence[dict[str, Any]]) -> str:
    """The table for a reader."""
    columns = list(tables()[table]["columns"]) if table in tables() else []
    head = ["Method", "Network", "Data", *(f"{c}, printed" for c in columns), "last epoch", "best epoch"]
    head += ["seeds", "second passes", "limit, SAM%"]
    title = f"{tables()[table]['number']}: {tables()[table]['caption']}" if table in tables() else OUR_TABLE
    out = [title, "", f"| {' | '.join(head)} |"]
    out.append("|---|---|---|" + "---:|" * (len(head) - 3))
    for found in lines:
        name = found["method"] + "".join(f", {k} {v}" for k, v in found["settings"].items())
        cells = [name + ("*" if found["quoted"] else ""), found["network"], found["data"]]
        cells += [found["printed"].get(c, "") for c in columns]
        cells += [str(found.get(key, "")) for key in OURS] + [str(found["limit, SAM%"] or "")]
        out.append(f"| {' | '.join(cells)} |")
    notes = dict.fromkeys(found["quoted"] for found in lines if found["quoted"])
    return "\n".join([*out, *(["", f"*: {'; '.join(notes)}"] if notes else [])]) + "\n"


def write(table: str, lines: Sequence[dict[str, Any]], out: Path) -> None:
    """``TABLE.md`` and ``TABLE.json``."""
    (out / f"{table}.md").write_text(markdown(table, lines), encoding="utf-8")
    text = json.dumps(lines, indent=1, ensure_ascii=False) + "\n"
    (out / f"{table}.json").write_text(text, encoding="utf-8")
