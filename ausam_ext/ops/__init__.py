"""The fused operators: the functions to call.

Each is also ``torch.ops.ausam_ext.<name>``. Its plain-PyTorch form in :mod:`ausam_ext.reference` is the
``default`` kernel; compiled kernels take over on the devices that have one (:func:`ausam_ext.backends`).

None records a gradient. Names that end in ``_`` change the arguments named under *Changes* and bump their
version counters, so that autograd notices. ``ValueError``, ``TypeError`` and ``IndexError`` are raised before
anything is changed and name the argument, its value and what is accepted.
"""

from .choosing import adlp_sample, adlp_update_, dlp, permute, subset_sample, subset_weights
from .gradients import perturb_, psf_capture_, psf_reuse_, restore_, sliced_variance

__all__ = [
    "adlp_sample",
    "adlp_update_",
    "dlp",
    "permute",
    "perturb_",
    "psf_capture_",
    "psf_reuse_",
    "restore_",
    "sliced_variance",
    "subset_sample",
    "subset_weights",
]
