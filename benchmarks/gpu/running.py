"""Runs one stage under a time limit. It always has an outcome, and a log.

A stage in parts is begun anew when its process has died, without the parts that it had begun.
"""

import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..journal import GOOD, LOST, Journal, outcomes
from .machine import CHANGING, now
from .stages import JOURNAL, REPORT, RESULTS, ROOT, SECONDS, Stage

ENDING = 15.0  # seconds that a stage which is told its time has to end in
LAST_WORDS = 5.0  # seconds between the request to stop and the end
PROCESSES = 25  # that a stage in parts has at most
TAIL = 25  # lines of a log
NOT_DONE = ("not done", "no time")  # so begin the outcomes of parts that had too little time

Outcome = dict[str, Any]

running: set[subprocess.Popen[bytes]] = set()
ended_early = threading.Event()  # somebody wants the whole run to end


def log_of(stage: Stage, work: Path) -> Path:
    return work / f"{stage.name.replace(' ', '-')}.log"


def journal_of(stage: Stage, work: Path) -> Path:
    return log_of(stage, work).with_suffix(".jsonl")


def execute(stage: Stage, deadline: float, work: Path, tick: Callable[[], None] = lambda: None) -> Outcome:
    """Runs the stage until ``deadline`` (of ``time.monotonic()``) at most; calls ``tick`` now and then."""
    changing = CHANGING if stage.kind == "timings" else ()
    begin, before = time.monotonic(), now(*changing)
    why = _processes(stage, min(deadline - stage.leaves, begin + stage.seconds), work, tick)
    text = log_of(stage, work).read_text(errors="replace") if log_of(stage, work).exists() else ""
    found = outcomes(journal_of(stage, work))
    bad = {part: outcome for part, outcome in found.items() if outcome not in GOOD}
    good = sum(outcome in GOOD and outcome != "skipped" for outcome in found.values())
    if not why and bad:
        why = f"{len(bad)} of {len(found)} parts were lost"
    if not why and stage.in_parts and not good:
        why = "nothing was measured or tested"
    if not why and stage.must_contain not in text:
        why = f"its log does not contain {stage.must_contain!r}"
    return {
        "stage": stage.name,
        "passed": not why,
        "why": why,
        "seconds": round(time.monotonic() - begin, 1),
        "counts": counts(found, text),
        "lost": bad,
        "tail": [] if not why else text.splitlines()[-TAIL:],
        "before": before,
        "after": now(*changing),
    }


def counts(found: dict[str, str | None], log: str) -> dict[str, int]:
    """How many parts had each outcome, and what compute-sanitizer found."""
    words = [
        o if o in GOOD else "not done" if o.startswith(NOT_DONE) else "failed" for o in found.values() if o
    ]
    counted = dict(Counter(words))
    findings = re.findall(r"SUMMARY: (\d+) (?:error|hazard)", log)
    return counted | ({"findings": sum(map(int, findings))} if findings else {})


def _processes(stage: Stage, deadline: float, work: Path, tick: Callable[[], None]) -> str:
    """Why the stage did not go through to its end; nothing if it did."""
    journal, begin = journal_of(stage, work), time.monotonic()
    for number in range(PROCESSES):
        if ended_early.is_set():
            return "the run was ended"
        limit = deadline - time.monotonic()
        told = f"{limit - ENDING:.0f}"
        if limit <= (ENDING if SECONDS in stage.command else 0) + 1:
            return "no time was left" + (" for the rest" if number else "")
        values = {
            SECONDS: told,
            JOURNAL: str(journal),
            RESULTS: str(work / "results"),
            REPORT: str(work / "report"),
        }
        begun = len(outcomes(journal))
        try:
            status = _process(stage, [values.get(c, c) for c in stage.command], deadline, work, tick)
        except OSError as error:
            return str(error)
        died = [part for part, outcome in outcomes(journal).items() if outcome is None]
        for part in died:
            said = (
                "not done when the time was over" if status is None else f"the process ended: {ended(status)}"
            )
            Journal(journal).end(part, said)
        if status is None:
            return f"not done after {deadline - begin:.0f} s"
        more = len(outcomes(journal)) > begun
        if not (stage.in_parts and more and (died or status == LOST)):
            # pytest has the status 5 if the processes before left nothing to do.
            through = status == 0 or (number and status == 5) or (status == 1 and _all_said(journal))
            return "" if through else ended(status)
    return f"{PROCESSES} processes died"


def _all_said(journal: Path) -> bool:
    """Whether the journal explains the status 1."""
    return any(outcome not in GOOD for outcome in outcomes(journal).values())


def ended(status: int) -> str:
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name


def _process(
    stage: Stage, command: list[str], deadline: float, work: Path, tick: Callable[[], None]
) -> int | None:
    """The exit status; None if it had to be stopped."""
    environment = {k: v for k, v in os.environ.items() if k != "TORCH_CUDA_ARCH_LIST"}  # the image's own
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    with log_of(stage, work).open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | stage.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    running.add(process)
    try:
        while (left := deadline - time.monotonic()) > 0:
            try:
                return process.wait(min(left, 2.0))
            except subprocess.TimeoutExpired:
                tick()
        stop(process, signal.SIGINT)  # pytest and compute-sanitizer say what they found
        with suppress(subprocess.TimeoutExpired):
            process.wait(LAST_WORDS)
        return None
    finally:
        stop(process, signal.SIGKILL)
        process.wait()
        running.discard(process)


def stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """With all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, how)
