"""What is trained for docs/choosing.md: tasks, and the methods that are compared on them.

No image that settings are compared on is a test image (``benchmarks.data.digits``,
``benchmarks.data.subset``).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data import digits, folder_of
from ..job import Job
from ..methods import METHODS
from ..problems import problem
from ..training import Training
from .proportional import Proportional

DATA = Path("data")  # a folder with a folder per data set
RAMP = 0.15  # of the epochs until AUSAM's s_max is reached, as the papers' 30 of 200

FIXED_RATE = {"alpha": 0.0, "initial_rate": 0.34}  # amid the averages of vSAM's Table 3

# A method of the registry, and its settings.
COMPARED: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("SGD", {}),
    "SAM": ("SAM", {}),
    "Random half": ("SAM+Random", {"full_epochs": 1}),  # the first epoch is whole, as AUSAM's
    "AUSAM": ("AUSAM-0.5", {}),
    "AUSAM, weighted": ("AUSAM-0.5", {"weighted": True}),
    "AUSAM, probability": ("AUSAM-0.5", {"score": "probability"}),
    "AUSAM, probability, weighted": ("AUSAM-0.5", {"score": "probability", "weighted": True}),
    "AUSAM, proportional, weighted": ("proportional", {}),
    "vSAM, rate 0.34": ("vSAM", FIXED_RATE),
    "vSAM, default": ("vSAM", {}),
    "AUSAM, probability + vSAM, rate 0.34": (
        "AUSAM+vSAM",
        {"score": "probability", "initial_rate": 0.34, "vsam_alpha": 0.0},
    ),
}

# Where `benchmarks.evidence.accuracy` begins: batch size, learning rate and rho of the demo for its network.
DIGITS = Job("SAM", "digits CNN", digits.PLAIN, 0, 20, 64, 0.05, 5e-4, 0.1)
TASKS = {
    digits.PLAIN: DIGITS,
    digits.WRONG: replace(DIGITS, dataset=digits.WRONG),
    digits.LONG_TAILED: replace(DIGITS, dataset=digits.LONG_TAILED, epochs=40),
    "Fashion-MNIST": Job(  # 784-256-256-10, no BatchNorm
        "SAM", "MLP", "Fashion-MNIST", 0, 60, 128, 0.1, 5e-4, 0.1, size=2000, small={"hidden": [256, 256]}
    ),
}


def available(names: Sequence[str], data: Path) -> list[str]:
    """Those whose data is there; says which is not."""
    missing = [n for n in names if n not in digits.KINDS and not folder_of(TASKS[n].dataset, data).is_dir()]
    for name in missing:
        print(f"left out: {name}, of which {folder_of(TASKS[name].dataset, data)} has no files")
    return [name for name in names if name not in missing]


def with_method(task: Job, name: str) -> Job:
    """The task with one of ``COMPARED``."""
    method, own = COMPARED[name]
    if method.startswith("AUSAM"):
        own = {"warmup_epochs": max(1, round(RAMP * task.epochs)), **own}
    return replace(task, method=method, settings=own)


def training(job: Job, data: Path) -> Training:
    """On the CPU, before its first step."""
    device = torch.device("cpu")
    methods = {**METHODS, "proportional": Proportional}
    return Training(job, problem(job, data, device), device, methods=methods)
