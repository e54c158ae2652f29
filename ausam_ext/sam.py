"""Sharpness-Aware Minimization (Foret et al. 2021; AUSAM Eq. 1 to 3) for any optimizer.

One step, of which the training loop runs the passes and :class:`SAM` all between them:

1. first pass: ``g = grad L(w)`` in ``.grad``
2. ``epsilon = rho * g / (||g|| + 1e-12)``, with one norm over all weights
3. the bits of ``w`` are kept, ``w`` becomes ``w + epsilon``, ``.grad`` is cleared
4. second pass, of the same batch: ``grad L(w + epsilon)`` in ``.grad``
5. ``w`` comes back, bit for bit, and all else that the second pass changed in the modules
6. the optimizer steps from ``w`` by ``.grad``
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import arguments, checks, misuse
from .backups import Displaced, copy_all
from .gradient_watch import GradientWatch
from .module_state import ModuleState
from .passes import Closure, RandomState, random_state, run, set_random_state
from .perturbation import Groups, Perturbation, Targets
from .scaling import inverse_scale, spread_overflow
from .sharding import drop_gathered, gatherers, is_sharded, local
from .shared_memory import owns_its_memory

_VERSION = 1


class SAM:
    """Leaves the SAM gradient ``grad L(w + rho * g / ||g||)`` (AUSAM Eq. 3) in ``.grad``, for any optimizer.

    Two forms. Explicit, after ``loss.backward()``::

        with sam.perturbed():  # w + epsilon inside, exactly w again outside
            criterion(model(x), y).backward()
        optimizer.step()

    or with a closure that clears gradients, runs forward and backward and returns its loss::

        loss, loss_perturbed = sam.backward(closure)
        optimizer.step()

    Either pass may consist of several backward passes (gradient accumulation). Whatever else a forward pass
    changes in the modules is after a step what the first pass made it: running statistics, observers, code
    books, queues, in buffers of any name or in parameters without gradient, also those that appear later.
    (What a module keeps in Python attributes cannot be seen: register it as a buffer.) Nothing is
    synchronised with the host, except in a few steps if there are buffers or frozen parameters of more than
    64 KiB, to see which of them a forward pass changes.

    Args:
        model: the module to train, as the training loop calls it: wrapped by ``DistributedDataParallel``,
            ``fully_shard`` or ``torch.compile`` if it is. Or several, such as a model and a loss that has
            weights. All their trained weights get only the gradient of the second pass. Parameters are
            looked up once, here; a model that gets others needs a new one.
        rho: radius of the perturbation, in units of the weights, not below 0.
        adaptive: ASAM's perturbation, relative to the size of each weight; use a ``rho`` ten to forty
            times as large.
        params: the parameters that are perturbed, over which the norm goes, such as those of some layers;
            all if None. Those with ``requires_grad=False`` are not, as long as they have it.
        maximize: look at ``w - epsilon``: for an optimizer with ``maximize=True``.
        groups: parameters with a radius of their own, as in ``[{"params": model.head.parameters(), "rho":
            0.1}]``. The norm goes over all that are perturbed.
        scaler: what scales the losses of both passes, for float16. An overflow in either pass then makes its
            ``step`` skip the optimizer's.

    Attributes:
        rho, groups, maximize: may be changed between steps.
        overflow: with a ``scaler``, whether a gradient of the last step overflowed in either pass; 0-d bool.
        grad_norm: of the last step with a second pass, ``||g||`` over all that was perturbed, of the unscaled
            gradient; 0-d, on the device, not synchronised. None before.
    """

    _method = "SAM"
    _keeps_difference = False  # of the gradients of both passes, which a clip between them would spoil

    @arguments.explained
    def __init__(
        self,
        model: arguments.Model,
        rho: float = 0.05,
        *,
        adaptive: bool = False,
        params: Iterable[nn.Parameter] | None = None,
        maximize: bool = False,
        groups: Sequence[dict[str, Any]] = (),
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.model = arguments.one_module(model, type(self).__name__)
        self.rho = checks.rho(rho)
        self.adaptive = checks.flag("adaptive", adaptive)
        self.maximize = checks.flag("maximize", maximize)
        self.scaler = arguments.enabled(scaler)
        self.overflow: Tensor | None = None
        self.grad_norm: Tensor | None = None
        self._gatherers = gatherers(self.model)
        drop_gathered(self._gatherers)
        self._params = list(self.model.parameters())
        self._perturbed = self._params
        if params is not None:
            self._perturbed = arguments.members("params", params, self._params)
            if not self._perturbed:
                raise ValueError("params: expected at least one parameter, got none")
        self.groups = [arguments.group(group, self._perturbed) for group in groups]
        arguments.members("groups", [p for g in self.groups for p in g["params"]], self._perturbed)
        self._sharded = any(map(is_sharded, self._params))
        self._perturbation = Perturbation(self._perturbed, self._sharded)
        self._registrations = misuse.registrations()
        self._state = ModuleState(self.model.modules(), self._params)
        self._averaged_by([m for m in self.model.modules() if isinstance(m, DistributedDataParallel)])
        misuse.MADE.add(self)

    def _averaged_by(self, ddps: list[DistributedDataParallel]) -> None:
        """What averages the gradients over processes: they change after the backward pass, as if clipped."""
        self._ddps = ddps
        self._watch = GradientWatch(self._perturbed, self._keeps_difference and not (ddps or self._sharded))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        misuse.MADE.add(self)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Inside, the weights are ``w + epsilon``; outside, exactly ``w`` again, in the same memory.

        Entering takes the ascent direction from ``.grad`` and clears ``.grad`` (to zero if it is a part of a
        larger tensor, else to None). Leaving, also by an exception, restores the bits of every weight and of
        all else that the second pass changed, and keeps the new ``.grad``. Weights without a gradient are not
        perturbed; a gradient that is zero or not finite perturbs none. Weights that share memory are
        perturbed as the one weight that they are.

        Raises:
            RuntimeError: no parameter has a gradient, on entering or on leaving; ``.grad`` still holds what
                the last step left there; the perturbation is already active; an optimizer of these weights
                steps inside; ``scaler.unscale_`` was called before; inside ``parametrize.cached()``; the
                model has other parameters than when this was made.
        """
        targets = self._enter()
        state, copies = self._state.before()
        try:
            with Displaced(self, [*state, *targets.weights], [*copies, *targets.backups]) as displaced:
                copy_all(state, to=copies)
                norm = self._perturbation.apply(
                    targets, *self._radii(), adaptive=self.adaptive, maximize=self.maximize
                )
                self.grad_norm = norm if self.scaler is None else norm * inverse_scale(self.scaler, norm)
                del targets  # frees the gradients before the second pass
                displaced.arrived()
                kept = self._clear()
                yield
        finally:
            drop_gathered(self._gatherers)
            self._state.after()
        grads = self._second_gradients(kept)
        if self.scaler is not None:
            self.overflow = spread_overflow(norm, grads, self._ddps)
        self._leave()

    def backward(
        self, closure: Closure, *, same_masks: bool = False, per_process: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Runs both passes and leaves the SAM gradient in ``.grad``.

        Args:
            closure: clears the gradients, runs forward and backward, returns its loss (of any shape).
            same_masks: start both passes from the same random state, so that dropout drops the same.
            per_process: with ``DistributedDataParallel``, do not average the first pass: each process
                perturbs by the gradient of its own batch (m-sharpness), and one of two reductions is saved.

        Returns:
            The losses at ``w`` and at ``w + epsilon``, detached.

        Raises:
            RuntimeError: as :meth:`perturbed`, also if the closure did not clear the gradients. No weight is
                changed.
        """
        if per_process and not self._ddps:
            raise TypeError(
                "per_process: expected a SAM made with the DistributedDataParallel that wraps the model, got "
                f"one made with {type(self.model).__name__}"
            )
        if per_process and any(ddp.static_graph for ddp in self._ddps):
            raise ValueError("per_process: expected static_graph=False, got True, with which no_sync() fails")
        masks = random_state(self._params) if same_masks else None
        with ExitStack() as first:
            for ddp in self._ddps if per_process else ():
                first.enter_context(ddp.no_sync())
            loss = self._first_pass(closure).clone()  # the second pass may write to the same memory
        return loss, self._second_pass(closure, masks)

    def state_dict(self) -> dict[str, Any]:
        """Nothing but its kind: SAM keeps nothing from step to step. So that it can be saved as VSAM can."""
        return {"version": _VERSION, "method": self._method}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            KeyError, ValueError: the state is not one of a SAM, or of another version.
        """
        checks.method(state, self._method)
        checks.version(state, _VERSION)

    def __repr__(self) -> str:
        return self._shown({"rho": self.rho, "adaptive": self.adaptive, "maximize": self.maximize})

    def _shown(self, settings: dict[str, Any]) -> str:
        settings["params"] = f"{len(self._perturbed)} of {len(self._params)}"
        settings["groups"] = [f"{len(g['params'])} with rho={g['rho']}" for g in self.groups]
        settings["scaler"] = self.scaler is not None
        listed = ", ".join(f"{name}={value}" for name, value in settings.items())
        return f"{type(self).__name__}({type(self.model).__name__}, {listed})"

    def __getattr__(self, name: str) -> Any:
        if name in arguments.ELSEWHERE:
            raise AttributeError(f"{type(self).__name__} has no {name}: {arguments.ELSEWHERE[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _check(self, what: str) -> None:
        """Refuses what would go wrong without a word; ``what`` is called."""
        if torch.compiler.is_compiling():
            return
        misuse.refuse_lbfgs(self._params)
        misuse.refuse_cached_weights(what)
        if self.scaler is not None:
            misuse.refuse_unscaled(self.scaler, self._params, what)
        if self._registrations != misuse.registrations():
            self._look_again(what)
        self._watch.check(what)

    def _look_again(self, what: str) -> None:
        """At the modules, of which some may be new; parameters must not be."""
        drop_gathered(self._gatherers)
        misuse.refuse_other_parameters(self, what)
        self._state.modules = list(self.model.modules())
        self._registrations = misuse.registrations()

    def _first_pass(self, closure: Closure) -> Tensor:
        """Runs the first pass, which has to clear the gradients that are there."""
        if not torch.compiler.is_compiling():
            self._watch.start(in_closure=True)
        return run(closure)

    def _second_pass(self, closure: Closure, masks: RandomState | None) -> Tensor:
        with self.perturbed():
            if masks is not None:
                set_random_state(masks)
            return run(closure)

    def _enter(self) -> Targets:
        """What the step is going to move, if nothing forbids it."""
        misuse.refuse_inside(self)
        self._check("perturbed()")
        drop_gathered(self._gatherers)
        targets = self._perturbation.targets(*self._radii())
        if targets is None:
            raise RuntimeError("perturbed(): no parameter has a gradient; call backward() on the loss first")
        return targets

    def _radii(self) -> tuple[float, Groups]:
        """The radius, and the groups with one of their own."""
        return self.rho, self.groups

    def _clear(self) -> list[tuple[Tensor, int]]:
        """Clears the gradients; returns those that are parts of a larger tensor, which an optimizer may have,
        and stay so, with their versions."""
        kept, compiling = [], torch.compiler.is_compiling()
        for p in self._params:
            grad = p.grad
            if grad is None or not p.requires_grad:
                continue
            if compiling or owns_its_memory(grad):
                p.grad = None
            else:
                grad.detach().zero_()
                kept.append(grad)
        return [(grad, grad._version) for grad in kept]  # now, as parts of one tensor count together

    def _second_gradients(self, kept: list[tuple[Tensor, int]]) -> list[Tensor]:
        """What the second pass left in ``.grad``; of ``kept`` only what it wrote to."""
        new = [p.grad for p in self._params if p.requires_grad and p.grad is not None]
        if kept:
            untouched = {id(grad) for grad, version in kept if grad._version == version}
            new = [grad for grad in new if id(grad) not in untouched]
        if not new:
            raise RuntimeError("perturbed(): no backward() ran inside; without it there is no SAM gradient")
        return new

    def _leave(self) -> None:
        """``.grad`` holds what the optimizer is to use."""
        if not torch.compiler.is_compiling():
            self._watch.start()
            misuse.leave(self)

    def _local(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [local(t) for t in tensors] if self._sharded else list(tensors)
