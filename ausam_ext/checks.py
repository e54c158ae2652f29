"""What every operator accepts.

The compiled kernels check the same, for memory safety, but can only raise ``RuntimeError``. These functions
say it properly: which argument, its value, what is accepted. They run before the reference kernels, at
tracing, and after a compiled kernel has refused its arguments; a call that succeeds does not pay for them.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .permutation import KEYS

TABLE = (torch.float32, torch.float64)
FLOATING = (*TABLE, torch.bfloat16, torch.float16)
INDEX = (torch.int64, torch.int32)


def _of(dtypes: Sequence[torch.dtype] | None) -> str:
    if dtypes is None:
        return ""
    *head, last = [str(d).removeprefix("torch.") for d in dtypes]
    return f" of {', '.join(head)} or {last}" if head else f" of {last}"


def tensor(
    name: str, value: Any, dtypes: Sequence[torch.dtype] | None = None, dim: int | None = None
) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor{_of(dtypes)}, got {value!r}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: expected a strided tensor, got layout {value.layout}")
    if dtypes is not None and value.dtype not in dtypes:
        raise TypeError(f"{name}: expected a tensor{_of(dtypes)}, got {value.dtype}")
    if dim is not None and value.dim() != dim:
        raise ValueError(f"{name}: expected {dim} dimension(s), got shape {tuple(value.shape)}")
    return value


def same_device(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{name}: expected the device of {like_name}, {like.device}, got {value.device}")


def same_shape(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.shape != like.shape:
        raise ValueError(
            f"{name}: expected the shape of {like_name}, {tuple(like.shape)}, got {tuple(value.shape)}"
        )


def same(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """Shape, dtype and device."""
    if value.dtype != like.dtype:
        raise TypeError(f"{name}: expected the dtype of {like_name}, {like.dtype}, got {value.dtype}")
    same_shape(name, value, like_name, like)
    same_device(name, value, like_name, like)


def number(name: str, value: Any, accepted: str, ok: Callable[[float], bool]) -> float:
    """A real number for which ``ok`` holds, also one of numpy's, as a Python number."""
    if not isinstance(value, (int, float, Real)):
        raise TypeError(f"{name}: expected a number, {accepted}, got {value!r}")
    plain = float(value)
    if not (math.isfinite(plain) and ok(plain)):
        raise ValueError(f"{name}: expected {accepted}, got {value}")
    return plain


def integer(name: str, value: Any, low: int, high: int | None = None, high_name: str = "") -> int:
    """An integer from ``low`` to ``high``, also one of numpy's, as a Python number."""
    accepted = f"at least {low}" if high is None else f"from {low} to {high_name} {high}".replace("  ", " ")
    if not isinstance(value, (int, Integral)):
        raise TypeError(f"{name}: expected an integer, {accepted}, got {value!r}")
    plain = value if isinstance(value, int) else int(value)
    if plain < low or (high is not None and plain > high):
        raise ValueError(f"{name}: expected an integer {accepted}, got {value}")
    return plain


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


def version(state: dict[str, Any], expected: int) -> None:
    if state["version"] != expected:
        raise ValueError(f"version: expected {expected}, got {state['version']}")


def weight_bounds(s_min: Any, s_max: Any) -> tuple[float, float]:
    low = number("s_min", s_min, "a finite number above 0", lambda v: v > 0)
    return low, number("s_max", s_max, f"a finite number not below s_min = {low}", lambda v: v >= low)


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


def inside(index: Tensor, num_samples: int, invalid: Tensor | None = None) -> bool:
    """On the CPU a wrong index is an error at once; elsewhere looking would be a synchronisation.

    Returns whether it looked.
    """
    if invalid is not None or index.device.type != "cpu" or isinstance(index, FakeTensor):
        return False
    if index.numel() and (index.min() < 0 or index.max() >= num_samples):
        wrong = index[(index < 0) | (index >= num_samples)]
        raise IndexError(
            f"index: {wrong[0].item()} is outside the table of {num_samples} samples "
            f"({wrong.numel()} of {index.numel()} entries are); expected 0 <= index < {num_samples}"
        )
    return True


def per_sample(loss: Any, index: Tensor) -> Tensor:
    """Losses that were not reduced, one for each index."""
    a = tensor("loss", loss, FLOATING)
    if a.shape != index.shape:
        hint = '; losses must be per sample (reduction="none"), with no other dimension'
        raise ValueError(
            f"loss: expected one for each index, shape {tuple(index.shape)}, got {tuple(a.shape)}"
            + (hint if a.dim() != 1 or a.numel() == 1 else ": are they of another batch?")
        )
    return a


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


def rho(value: Any) -> float:
    return number("rho", value, "a finite number not below 0", lambda v: v >= 0)


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
