"""The methods that the papers of AUSAM and vSAM compare with, on the same parts."""

from .infobatch import InfoBatchSampler

__all__ = ["InfoBatchSampler"]
