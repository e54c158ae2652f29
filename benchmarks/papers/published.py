"""What both papers print: `tables.json`, and `methods.json` with every method's cost and settings.

Each setting there says where it comes from: the paper, official code, or a guess, and why.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DEFAULT_NETWORK = "ResNet-18"  # whose settings a network has that no paper trains
STEPS = 78200  # of a run of 200 epochs on CIFAR


@dataclass(frozen=True)
class Row:
    """A row of a table: one method, network and data set.

    Attributes:
        footnote: says from which other paper it is quoted; None if it is the paper's own.
        printed: cells as printed, by column.
        settings: what sets the row apart from others of the method, such as vSAM's ``alpha``.
    """

    method: str
    network: str
    dataset: str
    footnote: str | None
    printed: dict[str, str]
    settings: dict[str, Any]


@cache
def tables() -> dict[str, dict[str, Any]]:
    """By id, ``ausam-1`` to ``vsam-5``."""
    content = json.loads((HERE / "tables.json").read_text(encoding="utf-8"))
    return {table["id"]: table for table in content["tables"]}


@cache
def methods() -> dict[str, dict[str, Any]]:
    return json.loads((HERE / "methods.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def rows(table: str) -> Iterator[Row]:
    """All rows of a table, in its order."""
    content = tables()[table]
    notes = content.get("footnotes") or {}
    for row in content["rows"]:
        footnote = row.get("footnote")
        printed = {column: _text(row.get(column)) for column in content["columns"]}
        known = {"line", "method", "footnote", "dataset", "model", *content["columns"]}
        yield Row(
            row["method"],
            row["model"] or "HRNet-W32",
            row["dataset"],
            None if footnote is None else notes[str(footnote)],
            {column: text for column, text in printed.items() if text},
            {key: value for key, value in row.items() if key not in known},
        )


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return str(cell.get("printed") or "") if isinstance(cell, dict) else str(cell)


def setting(method: str, name: str, network: str = DEFAULT_NETWORK, dataset: str = "CIFAR-10") -> Any:
    """One of a method's settings, for this network or data set if that makes a difference."""
    value = methods()["methods"][method]["hyper"][name]["value"]
    return _of(value, network, dataset)


def recipe(name: str, network: str) -> Any:
    """One of the settings that all methods share on CIFAR."""
    return _of(methods()["common_cifar"][name]["value"], network, "")


def _of(value: Any, network: str, dataset: str) -> Any:
    if not isinstance(value, dict):
        return value
    for key in (network, network.split(",")[0], dataset, DEFAULT_NETWORK, "CIFAR-10"):
        if key in value:
            return value[key]
    return value


def quote(network: str, method: str | float) -> str | None:
    """What the papers print of a method's speed, in percent of SAM's: ``"SGD"``, ``"vSAM"`` or an AUSAM's
    alpha. For a network that is not theirs, what they print of ResNet-18, their smallest."""
    name = method if isinstance(method, str) else f"AUSAM-{method}"
    known = {row.network for row in rows("ausam-2")}
    network = network if network in known else DEFAULT_NETWORK
    parts = []
    for table in ("ausam-2", "ausam-1", "ausam-3", "vsam-3"):
        own = [r for r in rows(table) if (r.method, r.network, r.footnote) == (name, network, None)]
        if not own or name == "SAM" or (table == "ausam-1" and parts):
            continue
        rates = ""
        if name == "vSAM":
            shares = [f"{int(row.printed['sam_steps']) / STEPS:.2f}" for row in own]
            rates = f" at rates {' and '.join(shares)}"
        percents = " and ".join(map(_percent, own))
        parts.append(f"{percents}{rates} ({tables()[table]['number']})")
    return f"{network}: " + ", ".join(parts) if parts else None


def _percent(row: Row) -> str:
    cell = row.printed.get("sam_percent") or row.printed["ais"].split("(")[1]
    return cell.rstrip("%)")
