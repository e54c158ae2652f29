"""The methods that the papers of AUSAM and vSAM compare with, on the same parts."""

from .aesam import AESAM
from .looksam import LookSAM
from .periodic import PeriodicSAM
from .randomized import RandomizedSAM

__all__ = ["AESAM", "LookSAM", "PeriodicSAM", "RandomizedSAM"]
