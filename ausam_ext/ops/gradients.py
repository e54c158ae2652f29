"""The operators of SAM and vSAM: the step up and back, and the sharpness part of a gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import checks
from .registration import call


def perturb_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    backups: Sequence[Tensor],
    rho: float,
    *,
    adaptive: bool = False,
    maximize: bool = False,
    norm: Tensor | None = None,
) -> Tensor:
    """SAM's ascent step (AUSAM Eq. 2): ``w += epsilon`` with ``epsilon = rho * g / (||g|| + 1e-12)``.

    The norm is over all tensors. Adaptive (ASAM): ``epsilon = rho * w^2 g / (|| |w| g || + 1e-12)``. If
    the norm is zero or not finite, ``epsilon`` is 0. Computed in float32 (float64 for float64), rounded once.

    Args:
        params: ``w``; float32, float64, bfloat16 or float16, in any layout.
        grads: ``g``: shape, dtype and device of ``params``, one for one.
        backups: receive the bits of ``params``; shape, dtype and device of ``params``.
        rho: radius of the perturbation, in units of ``w`` (adaptive: relative to ``|w|``), not below 0.
        maximize: ``w -= epsilon``, the worst neighbour of what is to be raised.
        norm: 0-d float32 or float64, on the device of the first tensor: takes the place of the norm over
            ``grads`` if that goes over more tensors than these, such as other processes' shards.

    Returns:
        The norm that was used, 0-d, on the device of the first tensor; float32, or float64 if one tensor is.

    Changes:
        ``params``, ``backups``.

    Raises:
        TypeError, ValueError: a list, a tensor of it or ``rho`` does not fit.
    """
    used = call("perturb_", params, grads, backups, rho, adaptive=adaptive, maximize=maximize, norm=norm)
    increment_version((*params, *backups))
    return used


def restore_(params: Sequence[Tensor], backups: Sequence[Tensor]) -> None:
    """Copies the bits of ``backups`` into the memory of ``params``: undoes :func:`perturb_`.

    Args:
        params: any dtype, in any layout.
        backups: shape, dtype and device of ``params``, one for one.

    Changes:
        ``params``.

    Raises:
        TypeError, ValueError: a list or a tensor of it does not fit.
    """
    call("restore_", params, backups)
    increment_version(params)


def psf_capture_(
    psf: Sequence[Tensor], grads: Sequence[Tensor], *, norm_last: int | None = None
) -> tuple[Tensor, Tensor]:
    """The sharpness part of SAM's gradient, ``PSF = g_SAM - g_SGD`` (vSAM Eq. 5), and both norms (Eq. 11).

    Args:
        psf: hold ``g_SGD`` on entry and the PSF on exit; float32, float64, bfloat16 or float16.
        grads: ``g_SAM``: shape, dtype and device of ``psf``, one for one.
        norm_last: take the norms over that many tensors from the end (the paper's "last few layers"); all if
            None.

    Returns:
        ``(||PSF||, ||g_SGD||)``, 0-d, in units of the gradient; float32, or float64 if one tensor is.

    Changes:
        ``psf``.

    Raises:
        TypeError, ValueError: a list or a tensor of it does not fit, ``norm_last`` is not from 1 to its
            length.
    """
    norms = call("psf_capture_", psf, grads, norm_last=norm_last)
    increment_version(psf)
    return norms


def psf_reuse_(
    grads: Sequence[Tensor],
    psf: Sequence[Tensor],
    scale: float | Tensor,
    *,
    limit: Tensor | None = None,
) -> None:
    """Adds the PSF of an earlier iteration to a gradient (vSAM Eq. 17): ``g += scale * PSF``.

    With a ``limit`` it adds no more of it than there is of the gradient:
    ``g += min(1, ||g|| / limit) * scale * PSF``, with the norm over all tensors.

    Args:
        grads: ``g_SGD``; float32, float64, bfloat16 or float16.
        psf: shape, dtype and device of ``grads``, one for one.
        scale: ``gamma^(i - i*)``: a number, or a 0-d float32 or float64 tensor, on the CPU or the device of
            ``grads``. 0 leaves ``grads`` as they are, even if ``psf`` is not finite.
        limit: 0-d float32 or float64, on the CPU or the device of ``grads``: ``||g||`` when the PSF was
            taken. 0 is no limit.

    Changes:
        ``grads``.

    Raises:
        TypeError, ValueError: a list, a tensor of it or ``scale`` does not fit.
    """
    if not isinstance(scale, Tensor):
        value = checks.number("scale", scale, "a finite number", lambda v: True)
        scale = torch.full((), value, dtype=torch.float64, device="cpu")
    call("psf_reuse_", grads, psf, scale, limit=limit)
    increment_version(grads)


def sliced_variance(norms: Tensor, slices: int) -> Tensor:
    """Mean of the variances of ``slices`` equal slices of the sorted values (vSAM Eq. 8).

    ``v = 1/M * sum_j var(sorted(norms)[slice j])`` with the unbiased variance; if ``M`` does not divide
    ``N`` the slices are those of ``torch.tensor_split``. Accumulated in float64.

    Args:
        norms: ``[N]``, float32 or float64, ``N >= 2 * slices``: norms of the PSF.
        slices: ``M``, at least 1.

    Returns:
        0-d, dtype of ``norms``, in squared units of it.

    Raises:
        TypeError: another type or dtype.
        ValueError: fewer than ``2 * slices`` values, more than one dimension, ``slices`` below 1.
    """
    return call("sliced_variance", norms, slices)
