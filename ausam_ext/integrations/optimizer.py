"""A ``torch.optim.Optimizer`` whose ``step(closure)`` is a SAM step of another optimizer."""

from inspect import signature
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from .. import guards
from ..sam import SAM, Closure
from ..vsam import VSAM

_NO_CLOSURE = (
    "step(): SAM runs the closure twice; give step() one that clears the gradients, runs forward and "
    "backward and returns its loss. Where the loop has none, step the wrapped optimizer after "
    "`with sam.perturbed():`"
)
_NOT_CLEARED = (
    "step(closure): the closure did not clear the gradients, so that its two passes would not be of the "
    "same batches; call zero_grad() of this optimizer in it, and accumulate over several batches inside it"
)


class SAMOptimizer(Optimizer):
    """Runs both passes of ``sam`` and steps ``optimizer``, all in ``step(closure)``.

    ::

        optimizer = SAMOptimizer(torch.optim.AdamW(model.parameters()), SAM(model, rho=0.05))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=1000)
        loss = optimizer.step(closure)
        scheduler.step()

    ``param_groups``, ``state``, ``defaults``, hooks and every other attribute are those of ``optimizer``, the
    same objects. Its hooks run around its own step, once, when ``.grad`` holds the SAM gradient: the place to
    clip. ``state_dict()`` is the optimizer's, and for :class:`VSAM` has its state in addition, as ``"sam"``.

    Args:
        optimizer: any but LBFGS, which calls its closure at weights that it chooses itself.
        sam: of the model that ``optimizer`` trains. If it has a ``scaler``, the closure scales the loss, the
            scaler steps the optimizer, and ``scaler.update()`` after ``step(closure)`` remains to be called.
        options: those of ``sam.backward``, such as ``same_masks=True``.

    Attributes:
        optimizer, sam: what was given.
        loss_perturbed: what ``sam.backward`` returned as such in the last step; None before the first.
    """

    def __init__(self, optimizer: Optimizer, sam: SAM, **options: Any) -> None:
        # Not the constructor above this one: it would make groups, state and hooks of its own.
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, LBFGS):
            raise TypeError(f"optimizer: {guards.LBFGS_REFUSED}")
        if not isinstance(sam, SAM):
            raise TypeError(f"sam: expected a SAM or VSAM, got {type(sam).__name__}")
        if not guards.trains(optimizer, list(sam.model.parameters())):
            raise ValueError("optimizer: expected parameters of the model that sam was made with, got none")
        signature(sam.backward).bind(None, **options)
        self.optimizer = optimizer
        self.sam = sam
        self.loss_perturbed: Tensor | None = None
        self._options = options
        self._cleared = False

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # not there yet
            raise AttributeError(name)
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

    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """One step of the optimizer with the SAM gradient.

        Args:
            closure: clears the gradients, runs forward and backward, returns its loss (of any shape). It is
                called once or twice, with gradients enabled.

        Returns:
            The loss at ``w``, detached.

        Raises:
            RuntimeError: there is no closure, or it did not clear gradients that were there. No weight is
                changed.
        """
        if closure is None:
            raise RuntimeError(_NO_CLOSURE)
        # The smallest: as long as it is held, its memory is not free.
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        probe = min(held, key=Tensor.numel, default=None)
        before = None if probe is None else probe.grad
        self._cleared = False

        def checked() -> Tensor:
            nonlocal probe
            loss = closure()
            if probe is not None and probe.grad is before and not self._cleared:
                raise RuntimeError(_NOT_CLEARED)
            probe = None
            return loss

        loss, self.loss_perturbed = self.sam.backward(checked, **self._options)
        if self.sam.scaler is None:
            self.optimizer.step()
        else:
            self.sam.scaler.step(self.optimizer)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of the optimizer and of the whole model: all enter the next direction."""
        self.sam.model.zero_grad(set_to_none)
        self.optimizer.zero_grad(set_to_none)
        self._cleared = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        return {**state, "sam": self.sam.state_dict()} if isinstance(self.sam, VSAM) else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            KeyError: ``sam`` is a :class:`VSAM` whose state is missing. Nothing is changed.
            ValueError: as for the optimizer and :class:`VSAM`.
        """
        state = dict(state_dict)
        if isinstance(self.sam, VSAM):
            if "sam" not in state:
                raise KeyError(
                    "sam: the state of VSAM is missing: was it saved by the wrapped optimizer alone?"
                )
            self.sam.load_state_dict(state.pop("sam"))
        self.optimizer.load_state_dict(state)

    def __repr__(self) -> str:
        return f"SAMOptimizer({self.optimizer!r}, {type(self.sam).__name__})"
