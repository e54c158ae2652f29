"""Mistakes around the two passes that would train something else without a word: noticed, and refused."""

import gc
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakSet, WeakValueDictionary, ref

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.nn.modules import module as modules
from torch.nn.utils import parametrize
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

LBFGS_REFUSED = (
    "LBFGS calls its closure many times in a step, at weights that its line search chooses, and needs the "
    "gradient of one function; SAM's is of another function at each"
)

INSIDE: list[Any] = []  # each SAM whose weights are perturbed now
_left: dict[int, ref[Any]] = {}  # each SAM whose gradient no optimizer has used yet, by id
MADE: "WeakSet[Any]" = WeakSet()  # every SAM
_SEARCHING: list[LBFGS] = []  # whose closure runs now
_NAMED = 10  # as many as one message names
_registrations = 0  # of parameters and modules, anywhere
_steps = 0  # of any optimizer
_optimizers: "WeakValueDictionary[int, Any]" = WeakValueDictionary()  # by id, all that a scaler keeps of them
# A SAM and an optimizer that were compared, by id, and how they were then.
_fitting: dict[tuple[int, int], tuple[ref[Any], ref[Optimizer], Any]] = {}


def trains(optimizer: Any, params: Iterable[nn.Parameter]) -> bool:
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


def steps() -> int:
    """How often any optimizer has stepped."""
    return _steps


def refuse_inside(sam: Any) -> None:
    if sam in INSIDE:
        raise RuntimeError(
            "perturbed(): already inside; leave the first perturbation before entering another"
        )


def refuse_other_parameters(sam: Any, what: str) -> None:
    now, then = list(sam.model.parameters()), sam._params
    if len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True)):
        raise RuntimeError(
            f"{what}: the model has other parameters than when this {type(sam).__name__} was made; make a "
            "new one"
        )


def refuse_lbfgs(params: list[nn.Parameter]) -> None:
    if any(trains(optimizer, params) for optimizer in _SEARCHING):
        raise TypeError(f"optimizer: expected any but LBFGS: {LBFGS_REFUSED}")


def refuse_cached_weights(what: str) -> None:
    """Torch computes each parametrised weight once in such a block: the second pass would see the first's."""
    if parametrize._cache_enabled:
        raise RuntimeError(
            f"{what}: inside parametrize.cached(), whose weights stay as the first pass computed them; open "
            "a cached() block in each pass"
        )


def refuse_unscaled(scaler: torch.amp.GradScaler, params: list[nn.Parameter], what: str) -> None:
    """The scaler unscales once a step: what comes after that would stay scaled."""
    for key, state in scaler._per_optimizer_states.items():
        if state["stage"] is OptState.UNSCALED and trains(_optimizer(key), params):
            raise RuntimeError(
                f"{what}: expected scaled gradients, but scaler.unscale_() was called in this step; call it, "
                f"and clip, after {what}"
            )


def _optimizer(key: int) -> Any:
    """The optimizer with this id, which a scaler remembers of it and nothing else."""
    if key not in _optimizers:  # it has not stepped yet
        found = next(o for o in gc.get_objects() if id(o) == key)
        _optimizers[key] = found
        return found
    return _optimizers[key]


def _count(*_: object) -> None:
    global _registrations
    _registrations += 1


def _before_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    global _steps
    if any(trains(optimizer, sam._params) for sam in INSIDE):
        raise RuntimeError(
            "optimizer.step() inside perturbed(): what it changes would be lost when the weights come "
            "back; call it after the block"
        )
    if not torch.compiler.is_compiling():
        _steps += 1
        if _left:
            _check_optimizer(optimizer)
    if isinstance(optimizer, LBFGS):
        # Refused only if SAM is called in it: a model may be trained by both, one after the other.
        names = {k: _searching(optimizer, v) if callable(v) else v for k, v in kwargs.items()}
        return tuple(_searching(optimizer, a) if callable(a) else a for a in args), names
    return None


def leave(sam: Any) -> None:
    """The next optimizer that trains its weights uses this SAM's gradient."""
    _left[id(sam)] = ref(sam)


def _check_optimizer(optimizer: Optimizer) -> None:
    """Compares an optimizer with the SAM whose gradient it is going to use; once, while neither changes."""
    groups = [(len(group["params"]), group.get("maximize")) for group in optimizer.param_groups]
    for key, reference in list(_left.items()):
        sam = reference()
        if sam is None:
            del _left[key]
            continue
        facts, pair = (groups, sam.maximize), (key, id(optimizer))
        then = _fitting.get(pair)
        if then is None or then[2] != facts or then[0]() is not sam or then[1]() is not optimizer:
            if not trains(optimizer, sam._params):
                continue
            _compare(optimizer, sam)
            for gone in [pair for pair, (a, b, _) in _fitting.items() if a() is None or b() is None]:
                del _fitting[gone]
            _fitting[pair] = (reference, ref(optimizer), facts)
        del _left[key]


def _compare(optimizer: Optimizer, sam: Any) -> None:
    _optimizers[id(optimizer)] = optimizer
    refuse_other_direction(optimizer, sam)
    warn_of_others(optimizer)
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    sam._watch.suspect([p for p in sam._perturbed if id(p) not in own and p.grad is not None])


def refuse_other_direction(optimizer: Any, sam: Any) -> None:
    """What one of them raises, the other would lower."""
    own = set(map(id, sam._perturbed))
    for i, group in enumerate(optimizer.param_groups):
        if (
            not own.isdisjoint(map(id, group["params"]))
            and group.get("maximize", sam.maximize) != sam.maximize
        ):
            raise RuntimeError(
                f"optimizer.step(): expected maximize={sam.maximize} in param_groups[{i}], as in "
                f"{type(sam).__name__}, got {group['maximize']}; give both the same, or SAM looks at the "
                "best neighbour instead of the worst"
            )


def warn_of_others(optimizer: Any) -> None:
    """Of weights that no SAM was given: theirs is the sum of the gradients of both passes."""
    known = {id(p) for sam in MADE for p in sam._params}
    others = [
        p
        for group in optimizer.param_groups
        for p in group["params"]
        if id(p) not in known and p.requires_grad and p.grad is not None
    ]
    if others:
        warnings.warn(
            f"optimizer: trains parameters that no SAM was given: {names_of(optimizer, others)}. Their "
            "gradient is the sum of both passes; give SAM all modules that are trained, as in SAM([model, "
            "criterion]), and params= if only some are to be perturbed",
            stacklevel=4,
        )


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
