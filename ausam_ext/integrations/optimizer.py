"""A ``torch.optim.Optimizer`` whose ``step(closure)`` is a SAM step of another optimizer."""

import sys
import warnings
from inspect import signature
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from .. import misuse
from ..passes import Closure
from ..sam import SAM
from ..schedule import ScheduledSAM
from ..sharding import local

_NO_CLOSURE = (
    "step(): SAM runs the closure twice; give step() one that clears the gradients, runs forward and "
    "backward and returns its loss. Where the loop has none, step the wrapped optimizer after "
    "`with sam.perturbed():`"
)
_OWN = ("optimizer", "sam", "loss_perturbed", "_options")  # attributes


class _NoGradient(Exception):
    """Ends the first pass of a closure that ran no backward()."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


class SAMOptimizer(Optimizer):
    """Runs both passes of ``sam`` and steps ``optimizer``, all in ``step(closure)``.

    ::

        optimizer = SAMOptimizer(torch.optim.AdamW(model.parameters()), SAM(model, rho=0.05))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=1000)
        loss = optimizer.step(closure)
        scheduler.step()

    ``param_groups``, ``state``, ``defaults``, hooks and every other attribute are those of ``optimizer``, the
    same objects. Its hooks run around its own step, once, when ``.grad`` holds the SAM gradient: the place to
    clip. ``state_dict()`` is the optimizer's, and has that of :class:`VSAM`, and of others that keep a state,
    in addition, as ``"sam"``.
    ``get_state_dict`` and ``set_state_dict`` of ``torch.distributed.checkpoint`` take it with them, but with
    ``flatten_optimizer_state_dict=True`` save ``sam.state_dict()`` as an entry of its own. Copies and pickles
    keep what those of any optimizer do: no hooks, and no scheduler.

    Args:
        optimizer: any but LBFGS, which calls its closure at weights that it chooses itself. Its weights that
            ``sam`` was not given are named in a warning.
        sam: of the model that ``optimizer`` trains. If it has a ``scaler``, the closure scales the loss, the
            scaler steps the optimizer, and ``scaler.update()`` after ``step(closure)`` remains to be called.
        options: those of ``sam.backward``, such as ``same_masks=True``.

    Attributes:
        optimizer, sam: what was given.
        loss_perturbed: what ``sam.backward`` returned as such in the last step; None before the first.
    """

    # In step(closure): the gradient that one weight had, and its version after it was cleared.
    _before: Tensor | None = None
    _version = 0

    def __init__(self, optimizer: Optimizer, sam: SAM, **options: Any) -> None:
        # Not the constructor above this one: it would make groups, state and hooks of its own.
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, LBFGS):
            raise TypeError(f"optimizer: {misuse.LBFGS_REFUSED}")
        if not isinstance(sam, SAM):
            raise TypeError(f"sam: expected a SAM or VSAM, got {type(sam).__name__}")
        if not misuse.trains(optimizer, list(sam.model.parameters())):
            raise ValueError("optimizer: expected parameters of the model that sam was made with, got none")
        signature(sam.backward).bind(None, **options)
        _warn_of_others(optimizer, optimizer.param_groups, sam)
        self.optimizer = optimizer
        self.sam = sam
        self.loss_perturbed: Tensor | None = None
        self._options = options
        self._take_direction()

    def __getstate__(self) -> dict[str, Any]:
        # Not what others put here, such as the step() of a scheduler, which is bound to this object.
        return {name: self.__dict__[name] for name in _OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # not there yet
            raise AttributeError(name)
        if name in ("first_step", "second_step"):
            raise AttributeError(f"SAMOptimizer has no {name}: step(closure) is both passes and the step")
        return getattr(self.optimizer, name)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.optimizer.defaults = defaults

    def step(self, closure: Closure | None = None) -> Tensor | None:
        """One step of the optimizer with the SAM gradient.

        Args:
            closure: clears the gradients, runs forward and backward, returns its loss (of any shape). It is
                called once or twice, with gradients enabled.

        Returns:
            The loss at ``w``, detached. If the closure gave no weight a gradient, there is no second pass,
            and the optimizer steps as it does without gradients.

        Raises:
            RuntimeError: there is no closure, or it did not clear gradients that were there. No weight is
                changed.
        """
        if closure is None:
            if not self._is_primed():
                raise RuntimeError(_NO_CLOSURE)
            self.optimizer.step()
            return None
        # The smallest: as long as it is held, its memory is not free.
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        probe = min(held, key=Tensor.numel, default=None)
        before = self._before = None if probe is None else probe.grad
        self._version = 0 if before is None else before._version
        first = True

        def checked() -> Tensor:
            nonlocal probe, first
            loss = closure()
            if first and isinstance(loss, Tensor):
                unheard = before is not None and before._version == self._version
                added = not (unheard and probe is not None and probe.grad is before)
                if not self._has_gradient(added):
                    raise _NoGradient(loss.detach())
            probe, self._before, first = None, None, False
            return loss

        try:
            loss, self.loss_perturbed = self.sam.backward(checked, **self._options)
        except _NoGradient as nothing:
            loss, self.loss_perturbed = nothing.loss, None
        if self.sam.scaler is None:
            self.optimizer.step()
        else:
            self.sam.scaler.step(self.optimizer)
        return loss

    def _has_gradient(self, added: bool) -> bool:
        """Whether a weight has one. If nothing was ``added``, it counts only if it is not zero."""
        weights = (*self.sam._params, *(p for group in self.param_groups for p in group["params"]))
        grads = [p.grad for p in weights if p.requires_grad and p.grad is not None]
        return bool(grads) if added else any(bool(local(grad).any()) for grad in grads)

    def _is_primed(self) -> bool:
        """Whether a step can only make the state, as ``torch.distributed.checkpoint`` has any optimizer do
        before it saves or loads: none there, every gradient and learning rate zero."""
        groups = self.param_groups
        if self.state or any(group.get("lr", 0.0) != 0.0 for group in groups):
            return False
        trained = [p for group in groups for p in group["params"] if p.requires_grad]
        return all(p.grad is not None and not local(p.grad).any() for p in trained)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of the optimizer and of the whole model: all enter the next direction."""
        self.sam.model.zero_grad(set_to_none)
        self.optimizer.zero_grad(set_to_none)
        if self._before is not None:
            self._version = self._before._version

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)
        _warn_of_others(self.optimizer, self.optimizer.param_groups[-1:], self.sam)
        self._take_direction()

    def _take_direction(self) -> None:
        """SAM looks at the worst neighbour in the sense of the optimizer's groups."""
        own = set(map(id, self.sam._perturbed))
        flags = {
            group["maximize"]
            for group in self.param_groups
            if "maximize" in group and any(id(p) in own for p in group["params"])
        }
        if len(flags) > 1:
            raise ValueError(
                "optimizer: expected one value of maximize for all weights that SAM perturbs, got both; give "
                "SAM those of one by params="
            )
        self.sam.maximize = flags.pop() if flags else self.sam.maximize

    def state_dict(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        if not isinstance(self.sam, ScheduledSAM):
            return state
        sam = self.sam.state_dict()
        if _is_for_checkpoint():
            # It takes no entries but two; a group it keeps whole, together with its parameters.
            groups = list(state["param_groups"])
            i = next((i for i, group in enumerate(groups) if group["params"]), 0)
            groups[i] = {**groups[i], "sam": sam}
            return {**state, "param_groups": groups}
        return {**state, "sam": sam}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`. If this raises, nothing is changed.

        Raises:
            KeyError: ``sam`` is a :class:`VSAM`, or another that keeps a state, which is missing.
            ValueError: as for the optimizer and ``sam``.
        """
        state = dict(state_dict)
        sam = state.pop("sam", None)
        if any("sam" in group for group in state["param_groups"]):
            sam = next(group["sam"] for group in state["param_groups"] if "sam" in group)
            state["param_groups"] = [
                {key: value for key, value in group.items() if key != "sam"}
                for group in state["param_groups"]
            ]
        if sam is None and isinstance(self.sam, ScheduledSAM):
            raise KeyError(
                f"sam: the state of {type(self.sam).__name__} is missing: was it saved by the wrapped "
                "optimizer only, or with flatten_optimizer_state_dict=True?"
            )
        before = self.optimizer.state, self.optimizer.param_groups
        try:
            self.optimizer.load_state_dict(state)  # into new ones
            if isinstance(self.sam, ScheduledSAM):
                self.sam.load_state_dict(sam)
        except BaseException:
            self.optimizer.state, self.optimizer.param_groups = before
            raise
        self._take_direction()

    def __repr__(self) -> str:
        return f"SAMOptimizer({self.optimizer!r}, {type(self.sam).__name__})"


def _warn_of_others(optimizer: Optimizer, groups: list[dict[str, Any]], sam: SAM) -> None:
    known = set(map(id, sam._params))
    others = [p for group in groups for p in group["params"] if id(p) not in known]
    if others:
        warnings.warn(
            "optimizer: expected weights of what sam was made with, got also "
            f"{misuse.names_of(optimizer, others)}, which SAM does not perturb, and whose gradients of both "
            "passes add up unless the closure clears them; make SAM with all modules, as in "
            "SAM([model, criterion])",
            stacklevel=3,
        )


def _is_for_checkpoint() -> bool:
    """Whether ``torch.distributed.checkpoint.state_dict`` asks, through wrappers or not."""
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        if caller.f_globals.get("__name__") == "torch.distributed.checkpoint.state_dict":
            return True
        frame = caller
    return False
