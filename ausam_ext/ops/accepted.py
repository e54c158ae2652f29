"""What every operator accepts.

The compiled kernels check the same, for memory safety, but can only raise ``RuntimeError``. These functions
say it properly. They run before the reference kernels, at tracing, and after a compiled kernel has refused
its arguments; a call that succeeds does not pay for them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from ..checks import (
    FLOATING,
    INDEX,
    TABLE,
    flag,
    inside,
    integer,
    per_sample,
    rho,
    same,
    same_device,
    same_shape,
    tensor,
    weight_bounds,
)
from ..permutation import KEYS


def dlp(loss: Any, loss_perturbed: Any) -> None:
    a, b = tensor("loss", loss, FLOATING), tensor("loss_perturbed", loss_perturbed, FLOATING)
    same("loss_perturbed", b, "loss", a)


def _table(total: Any, count: Any, index: Any, invalid: Any, tried: Any) -> tuple[Tensor, Tensor]:
    t = tensor("total", total, TABLE, dim=1)
    c = tensor("count", count, [torch.int32], dim=1)
    same_shape("count", c, "total", t)
    same_device("count", c, "total", t)
    i = tensor("index", index, INDEX)
    same_device("index", i, "total", t)
    if invalid is not None:
        same_device("invalid", tensor("invalid", invalid, [torch.int32], dim=0), "total", t)
    if tried is not None:
        same_shape("tried", tensor("tried", tried, [torch.uint8], dim=1), "total", t)
        same_device("tried", tried, "total", t)
    return t, i


def adlp_update_(
    total: Any,
    count: Any,
    index: Any,
    loss: Any,
    loss_perturbed: Any,
    *,
    invalid: Any = None,
    tried: Any = None,
) -> None:
    t, i = _table(total, count, index, invalid, tried)
    tensor("index", i, INDEX, dim=1)
    a = per_sample(loss, i)
    b = tensor("loss_perturbed", loss_perturbed, FLOATING)
    same_device("loss", a, "total", t)
    same("loss_perturbed", b, "loss", a)
    inside(i, t.numel(), invalid)


def _sample(name: str, rows: Tensor, k: Any, s_min: Any, s_max: Any, noise: Any) -> None:
    if rows.dim() == 0:
        raise ValueError(f"{name}: expected at least one dimension, got shape ()")
    integer("k", k, 1, rows.shape[-1], f"the last dimension of {name},")
    _race(name, rows, s_min, s_max, noise)


def _race(name: str, rows: Tensor, s_min: Any, s_max: Any, noise: Any) -> None:
    weight_bounds(s_min, s_max)
    if noise is not None:
        e = tensor("noise", noise, [torch.float32])
        same_shape("noise", e, name, rows)
        same_device("noise", e, name, rows)


def subset_sample(scores: Any, k: Any, *, s_min: Any, s_max: Any, noise: Any = None) -> None:
    _sample("scores", tensor("scores", scores, TABLE), k, s_min, s_max, noise)


def subset_weights(scores: Any, positions: Any, noise: Any, *, s_min: Any, s_max: Any) -> None:
    g, p = tensor("scores", scores, TABLE), tensor("positions", positions, [torch.int64])
    e = tensor("noise", noise, [torch.float32])
    if g.dim() == 0:
        raise ValueError("scores: expected at least one dimension, got shape ()")
    n = g.shape[-1]
    if p.dim() != g.dim() or p.shape[:-1] != g.shape[:-1] or not 1 <= p.shape[-1] <= n:
        raise ValueError(
            f"positions: expected from 1 to {n} for each row of scores, {tuple(g.shape)}, "
            f"got shape {tuple(p.shape)}"
        )
    same_device("positions", p, "scores", g)
    _race("scores", g, s_min, s_max, e)
    if p.device.type == "cpu" and not isinstance(p, FakeTensor) and p.numel():
        wrong = p[(p < 0) | (p >= n)]
        if wrong.numel():
            raise IndexError(
                f"positions: {wrong[0].item()} is outside a row of {n} scores; expected 0 <= position < {n}"
            )


def adlp_sample(
    total: Any,
    count: Any,
    index: Any,
    k: Any,
    *,
    s_min: Any,
    s_max: Any,
    noise: Any = None,
    invalid: Any = None,
    tried: Any = None,
) -> None:
    t, i = _table(total, count, index, invalid, tried)
    _sample("index", i, k, s_min, s_max, noise)
    inside(i, t.numel(), invalid)


def generator(value: Any, noise: Any, rows: Tensor) -> None:
    if value is None:
        return
    if not isinstance(value, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {value!r}")
    if noise is not None:
        raise ValueError(f"generator: expected None when noise is given, got {value!r}")
    if value.device.type != rows.device.type:
        raise ValueError(f"generator: expected one of device {rows.device.type}, got {value.device}")


def sliced_variance(norms: Any, slices: Any) -> None:
    n = tensor("norms", norms, TABLE, dim=1).numel()
    integer("slices", slices, 1)
    if n < 2 * slices:
        raise ValueError(f"norms: expected at least 2 * slices = {2 * slices} values, got {n}")


def permute(position: Any, n: Any, keys: Any) -> None:
    p = tensor("position", position, [torch.int64], dim=1)
    length = integer("n", n, 1, 1 << 62)
    if not isinstance(keys, (list, tuple)):
        raise TypeError(f"keys: expected a list of {KEYS} integers, got {keys!r}")
    if len(keys) != KEYS:
        raise ValueError(f"keys: expected {KEYS} integers, got {len(keys)}")
    for i, key in enumerate(keys):
        integer(f"keys[{i}]", key, 0, (1 << 32) - 1)
    if p.device.type == "cpu" and not isinstance(p, FakeTensor):
        wrong = p[(p < 0) | (p >= length)]
        if wrong.numel():
            raise IndexError(f"position: expected 0 <= position < n = {length}, got {wrong[0].item()}")


def _lists(
    name: str, values: Any, like_name: str, like: Any, dtypes: Sequence[torch.dtype] | None = FLOATING
) -> None:
    for list_name, tensors in ((like_name, like), (name, values)):
        if not isinstance(tensors, (list, tuple)):
            raise TypeError(f"{list_name}: expected a list of tensors, got {tensors!r}")
        for i, t in enumerate(tensors):
            tensor(f"{list_name}[{i}]", t, dtypes)
    if len(values) != len(like):
        raise ValueError(f"{name}: expected the length of {like_name}, {len(like)}, got {len(values)}")
    for i, (a, b) in enumerate(zip(values, like, strict=True)):
        same(f"{name}[{i}]", a, f"{like_name}[{i}]", b)
        if b.device.type != like[0].device.type:
            raise ValueError(
                f"{like_name}[{i}]: expected a device of the kind of {like_name}[0], {like[0].device.type}, "
                f"got {b.device}"
            )


def perturb_(
    params: Any,
    grads: Any,
    backups: Any,
    rho_: Any,
    *,
    adaptive: Any = False,
    maximize: Any = False,
    norm: Any = None,
) -> None:
    _lists("grads", grads, "params", params)
    _lists("backups", backups, "params", params)
    rho(rho_)
    flag("adaptive", adaptive)
    flag("maximize", maximize)
    if norm is not None:
        tensor("norm", norm, TABLE, dim=0)
        if params:
            same_device("norm", norm, "params[0]", params[0])


def restore_(params: Any, backups: Any) -> None:
    _lists("backups", backups, "params", params, dtypes=None)


def psf_capture_(psf: Any, grads: Any, *, norm_last: Any = None) -> None:
    _lists("grads", grads, "psf", psf)
    if norm_last is not None:
        integer("norm_last", norm_last, 1, len(psf), "the number of tensors,")


def psf_reuse_(grads: Any, psf: Any, scale: Any, *, limit: Any = None) -> None:
    _lists("psf", psf, "grads", grads)
    for name, value in (("scale", scale), ("limit", limit)):
        if name == "limit" and value is None:
            continue
        t = tensor(name, value, TABLE, dim=0)
        if grads and t.device.type != "cpu":
            same_device(name, t, "grads[0]", grads[0])
