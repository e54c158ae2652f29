"""Mistakes around the two passes that would train something else without a word: noticed, and refused."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.nn.modules import module as modules
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

LBFGS_REFUSED = (
    "LBFGS calls its closure many times in a step, at weights that its line search chooses, and needs the "
    "gradient of one function; SAM's is of another function at each"
)

INSIDE: list[Any] = []  # each SAM whose weights are perturbed now
_SEARCHING: list[LBFGS] = []  # whose closure runs now
_NAMED = 10  # as many as one message names
_registrations = 0  # of parameters and modules, anywhere


def trains(optimizer: Optimizer, params: list[nn.Parameter]) -> bool:
    """Whether the optimizer has any of the parameters."""
    own = set(map(id, params))
    return any(id(p) in own for group in optimizer.param_groups for p in group["params"])


def names_of(optimizer: Optimizer, params: Sequence[Tensor]) -> str:
    """What a message calls parameters of the optimizer: by their names, if it was given them."""
    wanted = set(map(id, params))
    names = [
        group["param_names"][j]
        if "param_names" in group
        else f'param_groups[{i}]["params"][{j}] of shape {tuple(p.shape)}'
        for i, group in enumerate(optimizer.param_groups)
        for j, p in enumerate(group["params"])
        if id(p) in wanted
    ]
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join(names[:_NAMED] + more)


def registrations() -> int:
    """Grows whenever any module is given a parameter or a module."""
    return _registrations


def refuse_lbfgs(params: list[nn.Parameter]) -> None:
    if any(trains(optimizer, params) for optimizer in _SEARCHING):
        raise TypeError(f"optimizer: expected any but LBFGS: {LBFGS_REFUSED}")


def refuse_unscaled(scaler: torch.amp.GradScaler, what: str) -> None:
    """The scaler unscales once a step: what comes after that would stay scaled."""
    states = scaler._per_optimizer_states.values()
    if any(state["stage"] is OptState.UNSCALED for state in states):
        raise RuntimeError(
            f"{what}: expected scaled gradients, but scaler.unscale_() was called in this step; call it, and "
            f"clip, after {what}. (Only the direction of the first gradient counts, so it needs neither.)"
        )


def _count(*_: object) -> None:
    global _registrations
    _registrations += 1


def _before_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if any(trains(optimizer, sam._params) for sam in INSIDE):
        raise RuntimeError(
            "optimizer.step() inside perturbed(): what it changes would be lost when the weights come "
            "back; call it after the block"
        )
    if isinstance(optimizer, LBFGS):
        # Refused only where SAM is called in it: a model may be trained by both, one after the other.
        names = {k: _searching(optimizer, v) if callable(v) else v for k, v in kwargs.items()}
        return tuple(_searching(optimizer, a) if callable(a) else a for a in args), names
    return None


def _searching(optimizer: LBFGS, closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def watched() -> Tensor:
        _SEARCHING.append(optimizer)
        try:
            return closure()
        finally:
            _SEARCHING.remove(optimizer)

    return watched


register_optimizer_step_pre_hook(_before_step)
modules.register_module_parameter_registration_hook(_count)
modules.register_module_module_registration_hook(_count)
