"""Refuses a wrong value with an error that says which argument it is, its value, and what is accepted."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

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


def method(state: dict[str, Any], expected: str) -> None:
    if state["method"] != expected:
        raise ValueError(f"method: expected a state of {expected}, got one of {state['method']}")


def version(state: dict[str, Any], expected: int) -> None:
    if state["version"] != expected:
        raise ValueError(f"version: expected {expected}, got {state['version']}")


def weight_bounds(s_min: Any, s_max: Any) -> tuple[float, float]:
    low = number("s_min", s_min, "a finite number above 0", lambda v: v > 0)
    return low, number("s_max", s_max, f"a finite number not below s_min = {low}", lambda v: v >= low)


def rho(value: Any) -> float:
    return number("rho", value, "a finite number not below 0", lambda v: v >= 0)


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
