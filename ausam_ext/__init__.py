"""Sharpness-Aware Minimization at the cost of SGD: AUSAM (arXiv 2406.08001) and vSAM (arXiv 2403.08821)."""

from . import ops
from .backend import backends

__all__ = ["backends", "ops"]
__version__ = "0.1.0"
