"""What benchmarks/results holds, as tables and sentences."""

import html
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .harness import RESULTS, Row
from .markdown import Cells
from .markdown import table as markdown

Suites = dict[str, dict[str, Any]]  # as harness.save writes them

TITLES = {
    "operators": "Operators",
    "steps": "Training steps",
    "family": "Steps of the family",
    "peers": "Beside other implementations of SAM",
    "scaling": "Scaling",
    "memory": "Memory",
    "precision": "Steps in bfloat16, as graphs and compiled",
    "bandwidth": "Share of copy bandwidth",
    "drift": "Drift of the machine between the first and the last timing",
}
KEYS = ("suite", "what", "size", "columns", "ratios", "against", "target", "bytes", "note")
ASIDE = ("copy", "graph", "part: ")  # no rivals: they do other work, a part of it, or are the same call
BOUNDS = (*ASIDE, "ideal")  # what a row may lose to


# Why an operator loses to a column, on the CPU. What a GPU's row says in its note is the GPU's own.
REASONS = {
    "psf_reuse_ / _foreach_add_": (
        "both wait for memory; this asks first for the line that it only reads, which costs up to 7 % in one "
        "thread and nothing if memory is saturated"
    ),
    "AUSAM-0.5 + vSAM-0.3 / ideal": (
        "copies, PSF and table cost as much as in other steps, and the passes are the shortest"
    ),
    "adlp_update_ / torch.compile": (
        "compiled code takes the table's columns one after the other, by atomic additions of all threads, "
        "so that rounding differs from run to run; the kernel keeps the order of visits"
    ),
}


def machines(folder: Path = RESULTS) -> dict[str, Suites]:
    """The suites of each machine, in the order of TITLES, by the name of its file; "cpu" first."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    names = sorted(set(found) - {"demo", "gate"}, key=lambda name: (name != "cpu", name))
    return {
        name: {s: found[name][s] for s in {**TITLES, **found[name]} if s in found[name]} for name in names
    }


def description(machine: dict[str, Any]) -> str:
    """A machine in a line."""
    cpu = f"{machine['processor']}, {machine['threads']} threads"
    on = f"{machine['gpu']} (CUDA {machine['cuda']}), {cpu}" if "gpu" in machine else cpu
    return f"{on}, torch {machine['torch']}, {machine['compiler']}"


def table(rows: Sequence[Row], brief: bool = False) -> Cells:
    """The time of each row's first column, or its bytes, and how many times as long the others take.

    Columns that most rows lack share one. ``brief`` leaves out what a row counts beside times, and the
    columns that are no rivals, unless a target names them.
    """
    counts = Counter(name for row in rows for name in row["ratios"])
    aims = {row["against"] for row in rows if row["target"]}
    names = [name for name in counts if not brief or name in aims or not name.startswith(ASIDE)]
    own = [name for name in names if 2 * counts[name] >= len(rows)]
    rest = [[name for name in row["ratios"] if name in names and name not in own] for row in rows]
    shown = {
        "What": [row["what"] for row in rows],
        "Size": [row["size"] for row in rows],
        "Time": [duration(first(row)) if row["columns"] else "" for row in rows],
        "Bytes": ["" if row["columns"] else f"{row['bytes']:,}" for row in rows],
        **{f"{name} / this": [ratio(row, name) for row in rows] for name in own},
        "Others / this": [
            "; ".join(f"{ratio(row, name)} {name}" for name in others)
            for row, others in zip(rows, rest, strict=True)
        ],
        "Target": [f"{row['target']:g} {row['against']}" if row["target"] else "" for row in rows],
    }
    if not brief:
        shown["GB/s"] = [pace(row) for row in rows]
        for key in dict.fromkeys(key for row in rows for key in row if key not in KEYS):
            shown[key.replace("_", " ").capitalize()] = [text(row.get(key)) for row in rows]
        shown["Note"] = [row["note"] or "" for row in rows]
    kept = {name: cells for name, cells in shown.items() if any(cells)}
    return [list(kept), *map(list, zip(*kept.values(), strict=True))]


def first(row: Row) -> float:
    """Seconds of the column that the row is about."""
    return next(iter(row["columns"].values()))["median"]


def ratio(row: Row, name: str) -> str:
    if name not in row["ratios"]:
        return ""
    r = row["ratios"][name]
    return short(r["median"]) + (f" ({short(r['q1'])} to {short(r['q3'])})" if "q1" in r else "")


def pace(row: Row) -> str:
    return short(row["bytes"] / first(row) / 1e9) if row["columns"] and row["bytes"] else ""


def duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{short(seconds)} s"
    return f"{short(1e3 * seconds)} ms" if seconds >= 1e-3 else f"{short(1e6 * seconds)} \N{MICRO SIGN}s"


def short(value: float) -> str:
    """Three digits that count, two behind the point at most."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(2, max(0, digits))}f}"


def text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def losses(rows: Sequence[Row], gpu: bool = False) -> list[str]:
    """A sentence for each row that misses its target, and for each operator that PyTorch does faster."""
    sentences, reasons = [], {} if gpu else REASONS
    for row in rows:
        for name, r in row["ratios"].items():
            target = row["target"] if name == row["against"] else None
            slower = row["suite"] == "operators" and r["q3"] < 1 and not name.startswith(BOUNDS)
            if r["median"] < target if target else slower:
                short_of = f" (target {target:g})" if target else ""
                what = f"times as fast as {name}" if row["columns"] else f"{name} / this"
                speed = f"{ratio(row, name)} {what}{short_of}"
                reason = reasons.get(f"{row['what']} / {name}", row["note"] or "not explained yet")
                sentences.append(f"{row['what']}, {row['size']}: {speed}: {reason}")
    return sentences


def html_table(cells: Cells) -> str:
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in line) + "</tr>"
        for line, tag in zip(cells, ["th", *["td"] * len(cells)], strict=False)
    ]
    return "<table>\n" + "\n".join(lines) + "\n</table>\n"


def summary(suites: Suites) -> str:
    """What docs/benchmarks.md says of a machine: rows that have a target, and what is lost."""
    parts = []
    for name, suite in suites.items():
        aimed = [row for row in suite["rows"] if row["target"]]
        if aimed:
            parts.append(f"{TITLES.get(name, name)} on {description(suite['machine'])}:\n")
            parts.append(markdown(table(aimed, brief=True)))
    lost = [
        sentence for suite in suites.values() for sentence in losses(suite["rows"], "gpu" in suite["machine"])
    ]
    if lost:
        parts.append("Where it loses:\n")
        parts.append("".join(f"- {sentence}\n" for sentence in lost))
    return "\n".join(parts)
