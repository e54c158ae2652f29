"""Bridges to training frameworks. Those are imported only with the module that is named after them."""

from .optimizer import SAMOptimizer

__all__ = ["SAMOptimizer"]
