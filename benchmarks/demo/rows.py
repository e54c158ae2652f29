"""What the demo compares: the same methods on two data sets."""

from dataclasses import dataclass
from typing import Any

from ..data import digits
from ..job import Job

RAMP = 0.15  # of the epochs until AUSAM has its full s_max, as the papers' 30 of 200
RATE = 0.34  # of vSAM's second passes, throughout: the rule of docs/choosing.md for short runs


@dataclass(frozen=True)
class Data:
    """A data set, what all methods do with it, and which of its samples are followed."""

    name: str
    epochs: int
    learning_rate: float
    rho: float
    marked: str  # what these samples are


DATA = (
    Data(digits.WRONG, 20, 0.05, 0.1, "wrong labels"),
    Data(digits.LONG_TAILED, 40, 0.025, 0.05, "images of the five rarest classes"),
)

# Each is one of benchmarks.methods, with settings. A random half has AUSAM's whole first epoch: without it,
# it learns later than AUSAM only for that reason.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("SGD", {}),
    "SAM": ("SAM", {}),
    "SAM+Random": ("SAM+Random", {"full_epochs": 1}),
    "AUSAM": ("AUSAM-0.5", {}),
    "AUSAM-weighted": ("AUSAM-0.5", {"weighted": True}),
    "AUSAM-probability": ("AUSAM-0.5", {"score": "probability"}),
    "vSAM": ("vSAM", {"initial_rate": RATE, "alpha": 0.0}),
    "vSAM-A": ("vSAM-A", {"initial_rate": RATE, "alpha": 0.0}),
    "AUSAM-probability+vSAM": (
        "AUSAM+vSAM",
        {"score": "probability", "initial_rate": RATE, "vsam_alpha": 0.0},
    ),
}


def job(method: str, data: Data, epochs: int, seed: int) -> Job:
    name, settings = METHODS[method]
    if name.startswith("AUSAM"):
        settings = {"warmup_epochs": max(1, round(RAMP * epochs)), **settings}
    return Job(
        method=name,
        network="digits CNN",
        dataset=data.name,
        seed=seed,
        epochs=epochs,
        batch_size=64,
        learning_rate=data.learning_rate,
        weight_decay=5e-4,
        rho=data.rho,
        settings=settings,
    )
