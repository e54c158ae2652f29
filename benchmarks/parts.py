"""Measures the parts of a suite one after the other, so that what befalls one costs no other.

The rows of a part are saved as soon as it is measured. A part that raises, or takes longer than it may, is
left behind. A journal, if one is asked for, says what became of each; if the process dies, another one may
follow, which leaves out what the journal names.
"""

import argparse
import faulthandler
import gc
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from .harness import RESULTS, Row, add, save
from .journal import LOST, MEASURED, Journal, OutOfTime, context_lost, within

Parts = Mapping[str, Callable[[], list[Row]]]
GRACE = 20.0  # seconds after a part's limit until the process ends, if the part does not: it hangs in C


def run(
    parts: Parts,
    device: str,
    *,
    seconds: float = math.inf,
    each: float = math.inf,
    journal: Path | None = None,
    folder: Path = RESULTS,
) -> bool:
    """Measures what the journal does not name; whether all of it was measured.

    Args:
        parts: what gives the rows of each.
        seconds: for all together; ``each``: for one.
        folder: where the rows go. If all are there they replace those of their suites, else they are added.
    """
    deadline = time.monotonic() + seconds
    written, rows, whole = Journal(journal), [], True
    for name, part in parts.items():
        if name in written.known:
            continue
        limit = min(each, deadline - time.monotonic())
        made: list[Row] = []
        written.begin(name)
        if limit <= 0:
            outcome = "no time was left"
        else:
            if limit < math.inf:
                faulthandler.dump_traceback_later(limit + GRACE, exit=True, file=sys.__stderr__)
            try:
                made = within(limit, part)
                outcome = MEASURED
            except OutOfTime:
                outcome = f"not done after {limit:.0f} s"
            except Exception as error:
                traceback.print_exc()
                outcome = f"{type(error).__name__}: {str(error).strip()[:300]}"
            faulthandler.cancel_dump_traceback_later()
        if made:
            add(made, device, folder)
            rows += made
        written.end(name, outcome)
        print(f"{name}: {outcome}", flush=True)
        if outcome != MEASURED:
            whole = False
            if device == "cuda":
                if context_lost():
                    sys.exit(LOST)
                gc.collect()  # what its frames held
                torch.cuda.empty_cache()
    if whole and rows and not written.known:
        save(rows, device, folder)
    return whole


def main(
    suite: str,
    parts: Callable[[str, bool], Parts],
    *,
    threads: int | None = None,
    arguments: list[str] | None = None,
) -> None:
    """The command ``python -m benchmarks.SUITE``.

    Args:
        parts: for a device, and for whether to be brief.
        threads: on the CPU.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{suite}")
    parser.add_argument("--seconds", type=float, help="be brief, and leave out what does not fit")
    parser.add_argument("--each", type=float, default=math.inf, help="seconds that a part may take")
    parser.add_argument("--journal", type=Path, help="file that says what became of each part")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder that the figures go to")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and threads:
        torch.set_num_threads(threads)
    whole = run(
        parts(device, options.seconds is not None),
        device,
        seconds=options.seconds or math.inf,
        each=options.each,
        journal=options.journal,
        folder=options.results,
    )
    if not whole:
        parser.exit(1, "not everything was measured\n")
