"""Faster Sharpness-Aware Minimization: AUSAM (arXiv 2406.08001) and vSAM (arXiv 2403.08821)."""

from pathlib import Path
from pkgutil import extend_path

if (Path(__file__).parents[1] / "csrc").is_dir():
    # Imported from a clone: the compiled module is where pip installed it.
    __path__ = extend_path(__path__, __name__)

from . import ops
from .adlp import ADLP
from .backend import backends
from .monitor import Monitor
from .rate import RateController
from .sam import SAM
from .sampler import AUSAMBatchSampler
from .vsam import VSAM

__all__ = ["ADLP", "SAM", "VSAM", "AUSAMBatchSampler", "Monitor", "RateController", "backends", "ops"]
__version__ = "0.1.0"
