"""Trains jobs, one after the other, and survives whatever ends it: each has a file of its own.

``KEY.json`` is a finished run, ``KEY.pt`` where an unfinished one was last saved. Both are written beside and
renamed, so that a file is whole or not there.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import ausam_ext

from .job import Job
from .problems import problem
from .training import Training

SAVE_EVERY = float(os.environ.get("PAPERS_SAVE_EVERY", "60"))  # seconds


def done(job: Job, out: Path) -> dict[str, Any] | None:
    """The record of a finished run."""
    path = out / f"{job.key}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def run(
    jobs: Sequence[Job],
    data: Path,
    out: Path,
    device: torch.device,
    *,
    seconds: float | None = None,
    save_every: float = SAVE_EVERY,
) -> bool:
    """Trains what is missing in ``out``; says whether all is there. Stops once ``seconds`` are over."""
    out.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if done(job, out) is None]
    end = None if seconds is None else time.monotonic() + seconds
    with tqdm(total=sum(job.epochs for job in missing), unit=" epochs", disable=None) as bar:
        for job in missing:
            bar.set_description(f"{job.method}, {job.network}, {job.dataset}, seed {job.seed}")
            if not _train(job, data, out, device, end, save_every, bar):
                return False
    return True


def _train(
    job: Job,
    data: Path,
    out: Path,
    device: torch.device,
    end: float | None,
    save_every: float,
    bar: Any,
) -> bool:
    weights = None
    if job.starts_from is not None:
        weights = torch.load(_weights(job.starts_from, out), map_location="cpu", weights_only=True)
    training, checkpoint = Training(job, problem(job, data, device), device, weights), out / f"{job.key}.pt"
    if checkpoint.exists():
        training.load(torch.load(checkpoint, map_location=device, weights_only=True))
        bar.update(training.epoch)
    epoch, saved = training.epoch, time.monotonic()
    for _ in training.steps():
        if training.epoch != epoch:
            bar.update(training.epoch - epoch)
            epoch = training.epoch
        over = end is not None and time.monotonic() > end
        if over or time.monotonic() - saved > save_every:
            write_whole(checkpoint, lambda path: torch.save(training.state(), path))
            saved = time.monotonic()
        if over:
            return False
    record = {
        "job": job.as_dict(),
        **vars(training.progress),
        "counts": vars(training.counts),
        "machine": platform.machine(),
        "device": str(device),
        "torch": torch.__version__,
        "ausam_ext": ausam_ext.__version__,
    }
    if job.starts_from is None and job.method == "SGD":  # others may start from it
        write_whole(_weights(job.key, out), lambda path: torch.save(training.model.state_dict(), path))
    text = json.dumps(record, indent=1) + "\n"
    write_whole(out / f"{job.key}.json", lambda path: path.write_text(text, encoding="utf-8"))
    checkpoint.unlink(missing_ok=True)
    return True


def _weights(key: str, out: Path) -> Path:
    return out / f"{key}.weights"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """A file that is whole, or as it was before."""
    part = path.with_suffix(".part")
    write(part)
    os.replace(part, path)
