"""What SAM takes as a model, as parameters and as groups; and what people write who come from another SAM."""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, TypeAlias, TypedDict, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import checks

Model: TypeAlias = nn.Module | Iterable[nn.Module]

_Init = TypeVar("_Init", bound=Callable[..., None])


class Options(TypedDict, total=False):
    """Keyword arguments of :class:`SAM`, which the methods built on it take too."""

    adaptive: bool
    params: Iterable[nn.Parameter] | None
    maximize: bool
    groups: Sequence[dict[str, Any]]
    scaler: torch.amp.GradScaler | None


ELSEWHERE = {
    "first_step": "entering `with perturbed():` is the first step, and backward(closure) is both passes",
    "second_step": "leaving `with perturbed():` restores the weights; optimizer.step() comes after it",
    "step": "step the optimizer after `with perturbed():` or backward(closure); "
    "ausam_ext.integrations.SAMOptimizer has step(closure)",
    "zero_grad": "clear the gradients of the optimizer; perturbed() clears those of the first pass itself",
    "param_groups": "the optimizer has them; SAM's radii are `rho` and `groups`",
}


def explained(init: _Init) -> _Init:
    """Other packages' SAM wraps the optimizer: SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1).

    Of which Python would say that `rho` is given twice.
    """

    @wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        given = [*args[1:2], *(kwargs[name] for name in ("rho", "base_optimizer") if name in kwargs)]
        if "lr" in kwargs or any(
            isinstance(v, Optimizer) or (isinstance(v, type) and issubclass(v, Optimizer)) for v in given
        ):
            method = type(self).__name__
            raise TypeError(
                f"{method}: takes the model, and leaves the optimizer as it is: sam = {method}(model, "
                "rho=0.05); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)"
            )
        init(self, *args, **kwargs)

    return cast(_Init, checked)


def one_module(model: Any, method: str) -> nn.Module:
    """``model``, or a module that has those in it as children."""
    modules = [model] if isinstance(model, nn.Module) else _listed(model)
    for m in modules:
        if not isinstance(m, nn.Module):
            got = type(m).__name__ if m is model else f"{type(model).__name__} of {type(m).__name__}"
            hint = ""
            if isinstance(m, Tensor):
                hint = f"; write {method}(model), not {method}(model.parameters())"
            elif isinstance(m, Optimizer):
                hint = f"; write {method}(model): the optimizer steps by itself afterwards"
            raise TypeError(f"model: expected a torch.nn.Module or several, got {got}{hint}")
    if not modules:
        raise ValueError("model: expected at least one torch.nn.Module, got none")
    for inner in [inner for m in modules for inner in m.modules()]:
        if hasattr(inner, "_fsdp_wrapped_module"):
            raise TypeError(
                "model: expected one sharded by fully_shard (FSDP2), got FullyShardedDataParallel, whose "
                "parameters do not tell what the other processes hold"
            )
        stage: Any = getattr(inner, "zero_optimization_stage", int)  # of a DeepSpeedEngine
        if stage():
            raise TypeError(
                f"model: expected a {type(inner).__name__} without ZeRO, got one of stage {stage()}, whose "
                "gradients are not in .grad; shard with fully_shard (FSDP2) instead"
            )
    return model if isinstance(model, nn.Module) else nn.ModuleList(modules)


def _listed(model: Any) -> list[Any]:
    if isinstance(model, (str, bytes, Tensor, dict)) or not isinstance(model, Iterable):
        return [model]
    return list(model)


def members(name: str, params: Any, known: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """``params`` as a list of some of the ``known`` parameters."""
    expected = f"{name}: expected parameters of the model, each at most once"
    if isinstance(params, (str, dict)) or not isinstance(params, Iterable):
        raise TypeError(f"{expected}, got {params!r}")
    found: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    own = set(map(id, known))
    for p in found:
        if not isinstance(p, Tensor):
            raise TypeError(f"{expected}, got {p!r}")
        if id(p) not in own:
            raise ValueError(f"{expected}, got one of shape {tuple(p.shape)} that is another or comes twice")
        own.remove(id(p))
    return found


def enabled(scaler: Any) -> torch.amp.GradScaler | None:
    """The scaler; None if it does nothing."""
    if not isinstance(scaler, (torch.amp.GradScaler, type(None))):
        raise TypeError(f"scaler: expected a torch.amp.GradScaler, got {scaler!r}")
    return scaler if scaler is not None and scaler.is_enabled() else None


def group(value: Any, known: Sequence[nn.Parameter]) -> dict[str, Any]:
    """A group of parameters and its radius."""
    if not isinstance(value, dict) or set(value) != {"params", "rho"}:
        got = f"keys {sorted(map(str, value))}" if isinstance(value, dict) else repr(value)
        raise TypeError(f'groups: expected dicts with the keys "params" and "rho", got {got}')
    return {"params": members("groups", value["params"], known), "rho": checks.rho(value["rho"])}
