"""What one training is: all that its result depends on."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """One training, with all that its result depends on.

    Attributes:
        settings: the method's own.
        smoothing: of labels.
        augmentation: arguments of :func:`benchmarks.data.augment`; None for images as they are.
        size: training images, drawn by ``seed``; None for all.
        validation: score on images that are held back from the training images, not on the test images.
        quantiser: "Jacob" or "LSQ".
        small: arguments that make the network smaller.
        made: the data are small made files.
        starts_from: the key of the job whose weights it begins with.
    """

    method: str
    network: str
    dataset: str
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    rho: float
    settings: dict[str, Any] = field(default_factory=dict)
    smoothing: float = 0.0
    augmentation: dict[str, Any] | None = None
    size: int | None = None
    validation: bool = False
    quantiser: str | None = None
    small: dict[str, Any] = field(default_factory=dict)
    made: bool = False
    starts_from: str | None = None

    @property
    def key(self) -> str:
        """The name of its file: readable, and another for any other setting."""
        parts = [self.dataset, self.network, self.method, *(f"{k}={v}" for k, v in self.settings.items())]
        parts += [self.quantiser or "", "made" if self.made else "", f"{self.epochs} epochs"]
        named = " ".join(part for part in parts if part)
        named = re.sub(r"[^A-Za-z0-9.=+*-]+", "_", named).replace("*", "first")
        digest = hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:8]
        return f"{named}_{digest}_seed{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
