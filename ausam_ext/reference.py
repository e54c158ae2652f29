"""Every operator in plain PyTorch: the specification of the compiled kernels, and what runs without them.

Registered as the ``default`` kernels by :mod:`ausam_ext.ops`, after its checks and without autograd. No
function but ``permute`` looks at a value on the host, so that they can be compiled and captured in a CUDA
graph.
``subset_sample`` and ``adlp_sample`` fix the result bit for bit: float32, one rounding per operation, in the
order written here.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .permutation import permute as permute

_INF = float("inf")
_MAX = torch.finfo(torch.float32).max
_DENORMAL = 2.0**-149  # the smallest float32 above 0
_LEAST = 2.0**-60  # probability that a weight is taken for; the sum of such weights is finite too


def dlp(loss: Tensor, loss_perturbed: Tensor) -> Tensor:
    dtype = accumulation_dtype([loss])
    return (loss_perturbed.to(dtype) - loss.to(dtype)).abs().contiguous()


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
    inside = _inside(index, total, invalid)
    if total.numel() == 0:
        return
    d = dlp(loss, loss_perturbed).to(total.dtype)
    finite = d.isfinite()
    visited = inside & finite
    index = index.where(inside, 0)
    if tried is not None:
        tried.scatter_reduce_(0, index.long(), (inside & ~finite).to(tried.dtype), "amax")
    total.index_add_(0, index, d.where(visited, 0))
    count.index_add_(0, index, visited.to(count.dtype))


def subset_sample(scores: Tensor, k: int, *, s_min: float, s_max: float, noise: Tensor) -> Tensor:
    key = _weights(scores, s_min, s_max).div_(noise).nan_to_num_(-_INF, _INF, -_INF)
    threshold = key.topk(k, sorted=False).values.amin(-1, keepdim=True)
    above, tie = key > threshold, key == threshold
    ties = k - above.sum(-1, keepdim=True, dtype=torch.int32)  # that are chosen: the first of them
    chosen = above | (tie & (tie.cumsum(-1, dtype=torch.int32) <= ties))
    *rows, n = key.shape
    positions = chosen.flatten().nonzero_static(size=math.prod(rows) * k)
    return positions.remainder_(n).view(*rows, k)


def _weights(scores: Tensor, s_min: float, s_max: float) -> Tensor:
    """Eq. 8 over the last dimension, with as few operations as there can be."""
    g = scores.to(torch.float32)
    high = g.nan_to_num(-_MAX, -_MAX, -_MAX).amax(-1, keepdim=True)
    g = g.nan_to_num(_MAX, _MAX, _MAX)  # not visited: above all, and then at the top of the range
    low = g.amin(-1, keepdim=True)
    top = (high - low).clamp_(0, _MAX)  # 0 if none was visited; _MAX if the difference overflows
    ratio = g.sub_(low).clamp_(max=top).div_(top.clamp(min=_DENORMAL))  # 0 / 0 is 0
    return ratio.mul_(s_max - s_min).add_(s_min)


def subset_weights(scores: Tensor, positions: Tensor, noise: Tensor, *, s_min: float, s_max: float) -> Tensor:
    n, k = scores.shape[-1], positions.shape[-1]
    s = _weights(scores, s_min, s_max)
    key = s / noise
    inside = (positions >= 0) & (positions < n)
    kept = positions.new_zeros((*positions.shape[:-1], n + 1), dtype=torch.bool)
    kept = kept.scatter(-1, positions.where(inside, n), True)[..., :n]
    # 0, below which no key has a part in the race, if all were kept.
    t = key.where((key > 0) & ~kept, 0).amax(-1, keepdim=True)
    p = -torch.expm1(-s.gather(-1, positions.where(inside, 0)) / t)
    w = (k / n) / p.where(p > _LEAST, _LEAST)
    return w.where(inside, float("nan"))


def adlp_sample(
    total: Tensor,
    count: Tensor,
    index: Tensor,
    k: int,
    *,
    s_min: float,
    s_max: float,
    noise: Tensor,
    invalid: Tensor | None = None,
    tried: Tensor | None = None,
) -> Tensor:
    inside = _inside(index, total, invalid)
    if total.numel() == 0:
        scores = torch.full_like(noise, float("nan"))
    else:
        i = index.where(inside, 0).long()
        scores = total[i] / count[i]  # 0 / 0 is NaN: never visited
        if tried is not None:
            scores = scores.where((count[i] != 0) | (tried[i] == 0), 0)
        scores = scores.where(inside, float("nan"))
    return subset_sample(scores, k, s_min=s_min, s_max=s_max, noise=noise)


def _inside(index: Tensor, total: Tensor, invalid: Tensor | None) -> Tensor:
    inside = (index >= 0) & (index < total.numel())
    if invalid is not None:
        invalid.add_((~inside).sum())
    return inside


def sliced_variance(norms: Tensor, slices: int) -> Tensor:
    parts = norms.double().sort().values.tensor_split(slices)
    return torch.stack([part.var(correction=1) for part in parts]).mean().to(norms.dtype)


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
    dtype = accumulation_dtype(params)
    if norm is None:
        directions = [_wide(w) * _wide(g) if adaptive else g for w, g in zip(params, grads, strict=True)]
        norm = _global_norm(directions, dtype)
    else:
        norm = norm.to(dtype, copy=True)
    scale = ((-rho if maximize else rho) / (norm + 1e-12)).where(norm.isfinite() & (norm > 0), 0)
    for p, g, backup in zip(params, grads, backups, strict=True):
        backup.copy_(p)
        w, step = _wide(p), _wide(g)
        if adaptive:
            step = w * w * step
        s = scale.to(w)
        p.copy_((w + s * step).where(s != 0, w))
    return norm


def restore_(params: Sequence[Tensor], backups: Sequence[Tensor]) -> None:
    for p, backup in zip(params, backups, strict=True):
        p.copy_(backup)


def psf_capture_(
    psf: Sequence[Tensor], grads: Sequence[Tensor], *, norm_last: int | None = None
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(psf)
    first = 0 if norm_last is None else len(psf) - norm_last
    sgd_norm = _global_norm(psf[first:], dtype)
    for p, g in zip(psf, grads, strict=True):
        p.copy_(_wide(g) - _wide(p))
    return _global_norm(psf[first:], dtype), sgd_norm


def psf_reuse_(
    grads: Sequence[Tensor], psf: Sequence[Tensor], scale: Tensor, *, limit: Tensor | None = None
) -> None:
    if limit is not None and grads:
        share = _global_norm(grads, torch.float64) / limit.to(grads[0].device)
        scale = scale.to(share) * share.where(share < 1, 1)
    for g, p in zip(grads, psf, strict=True):
        x = _wide(g)
        s = scale.to(x)
        g.copy_((x + s * _wide(p)).where(s != 0, x))


def accumulation_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float32, or float64 as soon as one tensor is."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _wide(t: Tensor) -> Tensor:
    return t.to(accumulation_dtype([t]))


def _global_norm(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    if not tensors:
        return torch.zeros((), dtype=dtype, device="cpu")
    norms = [torch.linalg.vector_norm(t, dtype=dtype).to(tensors[0].device) for t in tensors]
    return torch.linalg.vector_norm(torch.stack(norms))
