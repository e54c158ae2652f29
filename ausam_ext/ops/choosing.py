"""The operators of AUSAM: scores of samples, and which of them a batch keeps."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import accepted
from .registration import call


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
    accepted.generator(generator, noise, scores)
    if noise is None:
        accepted.subset_sample(scores, k, s_min=s_min, s_max=s_max)
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
    accepted.generator(generator, noise, index)
    if noise is None:
        accepted.adlp_sample(total, count, index, k, s_min=s_min, s_max=s_max, invalid=invalid, tried=tried)
        noise = _exponential(index, generator)
    given = _given(invalid, tried)
    positions = call("adlp_sample", total, count, index, k, s_min=s_min, s_max=s_max, noise=noise, **given)
    if invalid is not None:
        increment_version(invalid)
    return positions


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
