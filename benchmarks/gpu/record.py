"""What is kept of a run: a summary to read, and one archive with everything, both there at any time."""

import io
import json
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..harness import replace
from ..markdown import table
from ..tables import TITLES, machines, markdown
from ..tables import table as of_rows
from .running import Outcome

SUMMARY, ARCHIVE = "summary.md", "gpu.tar.gz"
MOST = 8 << 20  # bytes of a file in the archive: the end of a log says what happened
EVERY = 15.0  # seconds between archives while a stage runs


class Record:
    """Keeps ``output`` up to date with ``work``, the folder of logs, journals, figures and report."""

    def __init__(self, machine: dict[str, Any], work: Path, output: Path) -> None:
        self.machine, self.work, self.output = machine, work, output
        self.outcomes: list[Outcome] = []
        self.written = 0.0
        work.mkdir(parents=True, exist_ok=True)
        output.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        """After every stage. What cannot be shown is said, and hinders nothing else."""
        try:
            figures = measured(self.work / "results")
        except Exception as error:
            figures = f"The figures cannot be shown: {type(error).__name__}: {error}\n"
        replace(self.output / SUMMARY, summary(self.machine, self.outcomes) + figures)
        facts = {"machine": self.machine, "stages": self.outcomes}
        replace(self.work / "run.json", json.dumps(facts, indent=1) + "\n")
        self.archive()

    def tick(self) -> None:
        """While a stage runs."""
        if time.monotonic() - self.written > EVERY:
            self.archive()

    def archive(self) -> None:
        self.written = time.monotonic()
        path = self.output / ARCHIVE
        beside = path.with_name(path.name + ".new")
        with tarfile.open(beside, "w:gz", compresslevel=6) as archive:
            for file in sorted(p for p in self.work.rglob("*") if p.is_file() and p.suffix != ".new"):
                content = file.read_bytes()[-MOST:]
                info = tarfile.TarInfo(str(file.relative_to(self.work)))
                info.size, info.mtime = len(content), int(file.stat().st_mtime)
                archive.addfile(info, io.BytesIO(content))
            said = (self.output / SUMMARY).read_bytes() if (self.output / SUMMARY).exists() else b""
            info = tarfile.TarInfo(SUMMARY)
            info.size, info.mtime = len(said), int(time.time())
            archive.addfile(info, io.BytesIO(said))
        beside.replace(path)


def line(outcome: Outcome) -> str:
    facts = ", ".join(f"{n} {word}" for word, n in outcome["counts"].items())
    said = "passed" if outcome["passed"] else f"FAILED ({outcome['why']})"
    return f"{outcome['stage']:20} {outcome['seconds']:6.1f} s  {said}  {facts}".rstrip()


def summary(machine: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The machine, every stage, and of those that failed what was lost and how their logs end."""
    passed = sum(o["passed"] for o in outcomes)
    parts = [f"# {machine.get('gpu', 'GPU')}: {passed} of {len(outcomes)} stages passed\n"]
    parts.append("".join(f"- {name}: {value}\n" for name, value in machine.items()))
    if outcomes:
        parts.append(
            table([["Stage", "Outcome", "Seconds", "Parts", "Before", "After"], *map(cells, outcomes)])
        )
    for o in outcomes:
        if o["lost"]:
            lines = [f"- {reason}\n" for reason in reasons(o)]
            parts.append(f"Lost in {o['stage']}:\n\n{''.join(lines)}")
        if o["tail"]:
            parts.append(f"The end of the log of {o['stage']}:\n\n```\n" + "\n".join(o["tail"]) + "\n```\n")
    return "\n".join(parts) + "\n"


def reasons(outcome: Outcome) -> list[str]:
    """Why parts were lost, and which, a line for each reason."""
    of: dict[str, list[str]] = {}
    for part, why in outcome["lost"].items():
        of.setdefault(why, []).append(part)
    return [f"{why}: {'; '.join(parts)}" for why, parts in of.items()]


def cells(outcome: Outcome) -> list[str]:
    return [
        outcome["stage"],
        "passed" if outcome["passed"] else f"failed: {outcome['why']}",
        f"{outcome['seconds']:.1f}",
        ", ".join(f"{n} {word}" for word, n in outcome["counts"].items()),
        *(", ".join(outcome[when].values()) for when in ("before", "after")),
    ]


def measured(folder: Path) -> str:
    """The figures so far."""
    return "\n".join(
        f"## {TITLES.get(suite, suite)}\n\n{markdown(of_rows(content['rows']))}"
        for suites in machines(folder).values()
        for suite, content in suites.items()
    )
