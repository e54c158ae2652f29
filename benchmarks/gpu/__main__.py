"""`python -m benchmarks.gpu`: builds, tests and times the CUDA kernels, and keeps what came out.

Takes the Python environment as it is and needs no network. After every stage ``--output`` holds
``summary.md`` and ``gpu.tar.gz`` (logs, figures, report), and no other file; while one runs, the archive is
at most 15 seconds old. To publish the figures, put the archive's ``results/*.json`` into
``benchmarks/results`` and run ``python -m benchmarks.report``. The status is not 0 unless every stage passed.
"""

import argparse
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

from . import machine
from .record import Record, line, reasons
from .running import TAIL, Outcome, ended_early, execute, log_of, running, stop
from .stages import ROOT, Stage, stages

WORK = ROOT / "build" / "gpu-work"


def in_turn(chosen: Sequence[Stage]) -> Iterator[list[Stage]]:
    """Stages one by one; those that may run beside each other together."""
    together: list[Stage] = []
    for stage in chosen:
        if stage.beside:
            together.append(stage)
            continue
        if together:
            yield together
            together = []
        yield [stage]
    if together:
        yield together


def report(outcome: Outcome) -> None:
    print(line(outcome), flush=True)
    for reason in reasons(outcome):
        print(f"    {reason}"[:500])
    if outcome["tail"]:
        print("\n".join(f"    | {text}" for text in outcome["tail"]), flush=True)


def run(chosen: Sequence[Stage], seconds: float, record: Record) -> bool:
    """All stages within ``seconds``; whether each passed. ``record`` is up to date after each."""
    deadline = time.monotonic() + seconds
    lock = threading.Lock()

    def tick() -> None:
        with lock:
            record.tick()

    def one(stage: Stage) -> Outcome:
        outcome = execute(stage, deadline, record.work, tick)
        with lock:
            record.outcomes.append(outcome)
            record.write()
            report(outcome)
        return outcome

    record.write()
    for together in in_turn(chosen):
        if len(together) == 1:
            outcome = one(together[0])
            if together[0].essential and not outcome["passed"]:
                build = log_of(chosen[0], record.work)
                if together[0] != chosen[0] and build.exists():
                    print(f"The end of the log of {chosen[0].name}:")
                    print("\n".join(build.read_text(errors="replace").splitlines()[-TAIL:]))
                print(f"{together[0].name} failed: nothing else is done")
                return False
        else:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(one, together))
    return all(outcome["passed"] for outcome in record.outcomes)


def end(signum: int, frame: FrameType | None) -> None:
    """Ends what runs, and begins nothing more: what is there is still written down."""
    ended_early.set()
    for process in list(running):
        stop(process, signal.SIGKILL)


def main(
    arguments: Sequence[str] | None = None, all_stages: Sequence[Stage] | None = None, work: Path = WORK
) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together (default: 9)")
    parser.add_argument("--only", choices=("checks", "timings"), help="after the build, only these")
    parser.add_argument("--output", type=Path, default=Path("build/gpu"), help="folder (default: build/gpu)")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = machine.facts()
    if not found:
        import torch

        print(f"no NVIDIA GPU: torch {torch.__version__} sees none; nothing was run", file=sys.stderr)
        return 2
    chosen = [s for s in all_stages or stages() if options.only in (None, s.kind) or not s.kind]
    shutil.rmtree(work, ignore_errors=True)
    record = Record(found, work, options.output)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, end)
    passed = run(chosen, 60 * options.minutes, record)
    print(f"\n{options.output / 'summary.md'}\n{options.output / 'gpu.tar.gz'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
