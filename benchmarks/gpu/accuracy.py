"""`make gpu-accuracy DATA=DIR`: all methods on Fashion-MNIST, on the GPU.

The jobs are those of `python -m benchmarks.papers run fashion`, seed by seed, so that what is there compares
all methods. The images are on the device; steps are plain calls, as the one training loop captures none. Each
finished run is at once a line of ``runs.jsonl``, the only file in ``--output``; a failed one is a line that
says why. The same command goes on where an earlier one was stopped.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import runs
from ..harness import replace
from ..job import Job
from ..journal import context_lost
from ..papers.jobs import FASHION, jobs
from .stages import ROOT

LINES = "runs.jsonl"
WORK = ROOT / "build" / "gpu-accuracy-work"  # of unfinished runs


class ContextLost(Exception):
    """Every further call to the GPU fails in this process."""


def seen(output: Path) -> set[str]:
    """The keys of the jobs that have a line."""
    return {json.loads(line)["key"] for line in _text(output).splitlines()}


def add(output: Path, job: Job, facts: dict[str, Any]) -> None:
    replace(output / LINES, _text(output) + json.dumps({"key": job.key, **facts}) + "\n")


def _text(output: Path) -> str:
    path = output / LINES
    return path.read_text(encoding="utf-8") if path.exists() else ""


def train(
    todo: Sequence[Job], data: Path, output: Path, device: torch.device, seconds: float, work: Path = WORK
) -> bool:
    """Trains the jobs that have no line; whether the time was enough. A job that raises costs itself."""
    deadline = time.monotonic() + seconds
    output.mkdir(parents=True, exist_ok=True)
    before = seen(output)
    for job in todo:
        if job.key in before:
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        try:
            if not runs.run([job], data, work, device, seconds=left):
                return False
        except Exception as error:
            traceback.print_exc()
            failed = f"{type(error).__name__}: {str(error).strip()[:300]}"
            add(output, job, {"job": job.as_dict(), "failed": failed})
            if context_lost():
                raise ContextLost from error
            continue
        add(output, job, runs.done(job, work) or {})
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.accuracy", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that has Fashion-MNIST in it")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--output", type=Path, default=Path("build/gpu-accuracy"))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"no NVIDIA GPU: torch {torch.__version__} sees none; nothing was trained", file=sys.stderr)
        return 2
    todo = [job for _, of_row in jobs(FASHION, seeds=options.seeds) for job in of_row]
    todo.sort(key=lambda job: job.seed)
    start = time.monotonic()
    try:
        whole = train(todo, options.data, options.output, torch.device("cuda"), 60 * options.minutes)
    except ContextLost:  # another process does the rest
        left = options.minutes - (time.monotonic() - start) / 60
        same = {
            "--data": options.data,
            "--seeds": options.seeds,
            "--output": options.output,
            "--minutes": left,
        }
        again = [str(part) for option in same.items() for part in option]
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu.accuracy", *again])
    if not whole:
        print("The time is over; the same command goes on.")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
