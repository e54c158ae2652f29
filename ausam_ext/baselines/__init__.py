"""The methods that the papers of AUSAM and vSAM compare with, on the same parts."""

from .aesam import AESAM
from .esam import ESAM
from .ksam import KSAM
from .looksam import LookSAM
from .periodic import PeriodicSAM
from .randomized import RandomizedSAM

__all__ = ["AESAM", "ESAM", "KSAM", "LookSAM", "PeriodicSAM", "RandomizedSAM"]
