"""The methods that are compared."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """What sets a method apart.

    Attributes:
        sampler: arguments of ``AUSAMBatchSampler``.
        vsam: arguments of ``VSAM``; None for another method.
        sam: whether there is a second pass at all.
        adlp: whether the choice of samples follows their losses, so that these are recorded.
    """

    sampler: dict[str, Any]
    vsam: dict[str, Any] | None = None
    sam: bool = True
    adlp: bool = False


WHOLE = {"alpha": 1.0}
AUSAM = {"alpha": 0.5}
# Equal weights leave the choice to noise, which is distributed alike for all: every half is as likely.
RANDOM = {"alpha": 0.5, "s_min": 1.0, "s_max": 1.0, "full_epochs": 0}
# Steps with a second pass in the first window of 50. The rate moves by a few percent a window: from the
# default, 1, it takes hundreds of windows to find its level, as the paper's runs have; these have about 15.
VSAM = {"initial_samples": 10}

METHODS = {
    "SGD": Method(WHOLE, sam=False),
    "SAM": Method(WHOLE),
    "SAM+Random": Method(RANDOM),
    "AUSAM": Method(AUSAM, adlp=True),
    "vSAM": Method(WHOLE, vsam=VSAM),
    "vSAM-A": Method(WHOLE, vsam={**VSAM, "gamma": 0.0}),
    "AUSAM+vSAM": Method(AUSAM, vsam=VSAM, adlp=True),
}
