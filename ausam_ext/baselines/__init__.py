"""The methods that the papers of AUSAM and vSAM compare with, on the same parts."""

from .aesam import AESAM
from .esam import ESAM
from .infobatch import InfoBatchSampler
from .ksam import KSAM
from .looksam import LookSAM
from .mesa import MESA
from .momentum import MomentumSAM
from .periodic import PeriodicSAM
from .randomized import RandomizedSAM
from .saf import SAF

__all__ = [
    "AESAM",
    "ESAM",
    "KSAM",
    "MESA",
    "SAF",
    "InfoBatchSampler",
    "LookSAM",
    "MomentumSAM",
    "PeriodicSAM",
    "RandomizedSAM",
]
