"""The fused operators: the functions to call.

Each is also ``torch.ops.ausam_ext.<name>``. Its plain-PyTorch form in :mod:`ausam_ext.reference` is the
``default`` kernel; compiled kernels take over on the devices that have one (:func:`ausam_ext.backends`).

None records a gradient. Names that end in ``_`` change the arguments named under *Changes* and bump their
version counters, so that autograd notices. ``ValueError``, ``TypeError`` and ``IndexError`` are raised before
anything is changed and name the argument, its value and what is accepted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import checks
from .library import call


def dlp(loss: Tensor, loss_perturbed: Tensor) -> Tensor:
    """Difference in loss before and after the perturbation, per sample (AUSAM Eq. 5).

    ``|L_i(w + epsilon) - L_i(w)|``, elementwise.

    Args:
        loss: any shape; float32, float64, bfloat16 or float16.
        loss_perturbed: the same shape, dtype and device.

    Returns:
        The same shape, contiguous, in units of the loss; float32, or float64 for float64 losses.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: shapes or devices differ.
    """
    return call("dlp", loss, loss_perturbed)


def adlp_update_(
    total: Tensor,
    count: Tensor,
    index: Tensor,
    loss: Tensor,
    loss_perturbed: Tensor,
    *,
    invalid: Tensor | None = None,
    tried: Tensor | None = None,
) -> None:
    """Records the DLP of the samples of one step (AUSAM Eq. 5 and 6, Algorithm 1 line 8).

    ``total[index[j]] += |loss_perturbed[j] - loss[j]|`` and ``count[index[j]] += 1``. The mean over visits,
    ADLP, is ``total / count``. A DLP that is not finite is not recorded; a sample that is twice in
    ``index`` is visited twice. (On CUDA, a call of more than 1,024 entries adds such visits in no fixed
    order.)

    Args:
        total: ``[samples]``, float32 or float64: sums of DLP, in units of the loss.
        count: ``[samples]``, int32: visits.
        index: ``[B]``, int32 or int64: which samples the losses belong to.
        loss: ``[B]``, float32, float64, bfloat16 or float16: losses at ``w``.
        loss_perturbed: ``[B]``, like ``loss``: losses at ``w + epsilon``.
        invalid: 0-d int32. Counts the entries of ``index`` outside the table, which are then skipped.
        tried: ``[samples]``, uint8, 0 or 1. Becomes 1 if a DLP was not finite: the sample was visited,
            whatever ``count`` says.

    Changes:
        ``total``, ``count``, ``invalid``, ``tried``.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: shapes or devices do not fit.
        IndexError: without ``invalid``, on the CPU: an entry of ``index`` is outside the table. (On CUDA such
            entries are skipped: to raise would be to synchronise.)
    """
    given = _given(invalid, tried)
    call("adlp_update_", total, count, index, loss, loss_perturbed, **given)
    increment_version((total, count, *given.values()))


def subset_sample(
    scores: Tensor,
    k: int,
    *,
    s_min: float = 0.1,
    s_max: float = 1.0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws ``k`` of the last dimension without replacement, more likely if the score is high (Eq. 7, 8).

    ``s = (g - min g) / (max g - min g) * (s_max - s_min) + s_min`` in float32, then successive sampling with
    probabilities proportional to ``s``, as an exponential race: the ``k`` largest ``s / noise``, ties to the
    lower position. The chosen set is the one that ``torch.multinomial(s, k, generator=generator)`` picks. A
    score that is NaN or infinite counts as the largest of its row (never visited); if all are equal, so
    are the weights.

    Args:
        scores: ``[..., K]``, float32 or float64 (rounded to float32); leading dimensions are independent
            rows.
        k: how many to draw, from 1 to ``K``.
        s_min, s_max: weights of the lowest and of the highest score, ``0 < s_min <= s_max``.
        noise: ``[..., K]``, float32, independent draws from Exp(1).
        generator: draws the noise if it is not given.

    Returns:
        ``[..., k]``, int64: the chosen positions, ascending. The same bits on every backend.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: ``k``, ``s_min`` or ``s_max`` out of range; shapes or devices do not fit.
    """
    checks.generator(generator, noise, scores)
    if noise is None:
        checks.subset_sample(scores, k, s_min=s_min, s_max=s_max)
        noise = _exponential(scores, generator)
    return call("subset_sample", scores, k, s_min=s_min, s_max=s_max, noise=noise)


def subset_weights(
    scores: Tensor,
    positions: Tensor,
    noise: Tensor,
    *,
    s_min: float = 0.1,
    s_max: float = 1.0,
) -> Tensor:
    """Importance weights of what :func:`subset_sample` chose with this noise (rank conditioning).

    ``w = (k / K) / (1 - exp(-s / t))``, where ``s`` are the weights of Eq. 8, as :func:`subset_sample` has
    them, and ``t`` is the largest ``s / noise`` of the row that was not chosen: given ``t``, a sample is
    chosen with probability ``1 - exp(-s / t)``. The mean over the subset of ``w * f`` is an unbiased estimate
    of the row's mean of any ``f`` (Cohen and Kaplan, arXiv 0802.3448). 1 if all of a row are chosen. A
    probability below ``2^-60`` counts as that, so that every weight is finite, whatever the noise.

    Args:
        scores: ``[..., K]``, float32 or float64 (rounded to float32).
        positions: ``[..., k]``, int64, ``1 <= k <= K``: what was chosen, in any order.
        noise: ``[..., K]``, float32: what it was chosen with.
        s_min, s_max: as in :func:`subset_sample`.

    Returns:
        ``[..., k]``, float32, above 0, in the order of ``positions``.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: ``s_min`` or ``s_max`` out of range; shapes or devices do not fit.
        IndexError: on the CPU: a position outside its row. (On CUDA it weighs NaN: to raise would be to
            synchronise.)
    """
    return call("subset_weights", scores, positions, noise, s_min=s_min, s_max=s_max)


def adlp_sample(
    total: Tensor,
    count: Tensor,
    index: Tensor,
    k: int,
    *,
    s_min: float = 0.1,
    s_max: float = 1.0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    invalid: Tensor | None = None,
    tried: Tensor | None = None,
) -> Tensor:
    """:func:`subset_sample` of the scores ``total[index] / count[index]`` (Eq. 6, 7 and 8), in one pass.

    Args:
        total, count: the table, as in :func:`adlp_update_`. A sample whose count is 0 was never visited
            (but see ``tried``).
        index: ``[..., K]``, int32 or int64: the candidates; leading dimensions are independent batches.
        k, s_min, s_max, noise, generator: as in :func:`subset_sample`.
        invalid: 0-d int32. Counts the entries of ``index`` outside the table, which score as never visited.
        tried: ``[samples]``, uint8, as in :func:`adlp_update_`. A sample whose count is 0 scores 0, the
            lowest DLP there is, if this is not 0: no DLP of it was finite yet.

    Returns:
        ``[..., k]``, int64: positions in the last dimension of ``index``, ascending.

    Changes:
        ``invalid``.

    Raises:
        TypeError, ValueError, IndexError: as the two functions above.
    """
    checks.generator(generator, noise, index)
    if noise is None:
        checks.adlp_sample(total, count, index, k, s_min=s_min, s_max=s_max, invalid=invalid, tried=tried)
        noise = _exponential(index, generator)
    given = _given(invalid, tried)
    positions = call("adlp_sample", total, count, index, k, s_min=s_min, s_max=s_max, noise=noise, **given)
    if invalid is not None:
        increment_version(invalid)
    return positions


def _given(invalid: Tensor | None, tried: Tensor | None) -> dict[str, Tensor]:
    """To pass a None costs as much as to pass a tensor."""
    given = {}
    if invalid is not None:
        given["invalid"] = invalid
    if tried is not None:
        given["tried"] = tried
    return given


def _exponential(rows: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.empty(rows.shape, dtype=torch.float32, device=rows.device).exponential_(generator=generator)


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


def permute(position: Tensor, n: int, keys: Sequence[int]) -> Tensor:
    """Values at ``position`` of a random permutation of ``0 ... n - 1``, which is never stored.

    Each value is computed by itself, from its position and the keys (:mod:`ausam_ext.permutation`).

    Args:
        position: ``[length]``, int64, from 0 to ``n - 1``, in any order and as often as one likes.
        n: length of the permutation, from 1 to ``2^62``.
        keys: 8 integers from 0 to ``2^32 - 1``, drawn at random: they pick the permutation.

    Returns:
        ``[length]``, int64, from 0 to ``n - 1``. The same values on every backend.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: ``position`` has another number of dimensions; ``n`` or a key is out of range.
        IndexError: on the CPU: a position is not from 0 to ``n - 1``. (On CUDA its value is -1: to raise
            would be to synchronise.)
    """
    return call("permute", position, n, keys)


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
