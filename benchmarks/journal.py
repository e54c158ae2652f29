"""What became of each part of a suite, or of each test, written down at once; and limits to their time."""

import json
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

LOST = 75  # exit status: the GPU's context is gone; another process may do the rest
MEASURED = "measured"
GOOD = (MEASURED, "passed", "skipped")  # outcomes of parts, and of tests


class OutOfTime(BaseException):
    """No Exception: what handles errors, as torch's compiler does, would take it for one of its own."""


class Journal:
    """JSON lines: ``{"part": name}`` when a part begins, the same with its ``outcome`` when it has ended."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known = set(outcomes(path)) if path else set()  # what an earlier process began

    def begin(self, part: str) -> None:
        self._write({"part": part})

    def end(self, part: str, outcome: str) -> None:
        self._write({"part": part, "outcome": outcome})

    def _write(self, entry: dict[str, Any]) -> None:
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def outcomes(path: Path) -> dict[str, str | None]:
    """What became of each part; None for one that was begun and not ended."""
    found: dict[str, str | None] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the process was killed while it wrote
                continue
            found[entry["part"]] = entry.get("outcome")
    return found


def within(seconds: float, part: Callable[[], Any]) -> Any:
    """Calls ``part``; raises :class:`OutOfTime` out of it after so many seconds.

    The alarm repeats each second: an exception that is raised in a destructor is lost.
    """
    if seconds == math.inf:
        return part()
    armed = True

    def ring(signum: int, frame: FrameType | None) -> None:
        if armed:
            raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 1.0)
    try:
        try:
            return part()
        finally:
            armed = False  # first of all: it may ring while this is left
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def context_lost() -> bool:
    """Whether every further call to the GPU fails, as after an access outside memory."""
    torch = sys.modules.get("torch")  # what has not imported it has not used the GPU
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
