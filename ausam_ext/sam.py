"""Sharpness-Aware Minimization around any optimizer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import arguments, checks, misuse, ops
from .backups import Backups, Displaced, copy_all
from .gradient_watch import GradientWatch
from .module_state import ModuleState
from .ops import accepted
from .sharding import drop_gathered, gatherers, global_norm, is_sharded, local
from .shared_memory import SharedMemory, merge, owns_its_memory

Closure = Callable[[], Tensor]

_RandomState = dict[int | None, Tensor]  # of the CPU's generator, under None, and of GPUs'
_VERSION = 1


class Options(TypedDict, total=False):
    """Keyword arguments of :class:`SAM`, which the methods on it take too."""

    adaptive: bool
    params: Iterable[nn.Parameter] | None
    maximize: bool
    groups: Sequence[dict[str, Any]]
    scaler: torch.amp.GradScaler | None


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
        adaptive: ASAM's perturbation, relative to the size of each weight; use a ``rho`` about ten times as
            large.
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
        if not isinstance(scaler, (torch.amp.GradScaler, type(None))):
            raise TypeError(f"scaler: expected a torch.amp.GradScaler, got {scaler!r}")
        self.rho = checks.rho(rho)
        self.adaptive = checks.flag("adaptive", adaptive)
        self.maximize = checks.flag("maximize", maximize)
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
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
        self._registrations = misuse.registrations()
        self._memory, self._backups = SharedMemory(), Backups()
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
        if self in misuse.INSIDE:
            raise RuntimeError(
                "perturbed(): already inside; leave the first perturbation before entering another"
            )
        self._check("perturbed()")
        places = [i for i, p in enumerate(self._perturbed) if p.requires_grad and p.grad is not None]
        if not places:
            raise RuntimeError("perturbed(): no parameter has a gradient; call backward() on the loss first")
        drop_gathered(self._gatherers)
        weights, grads, places = self._merged(places)
        backups = self._backups.of(places, weights)
        state, copies = self._state.before()
        try:
            with Displaced(self, [*state, *weights], [*copies, *backups]) as displaced:
                if state:
                    copy_all(state, to=copies)
                norm = self._ascend(weights, grads, backups, places)
                self.grad_norm = norm if self.scaler is None else norm * self._unscale(norm)
                del grads  # frees them before the second pass
                displaced.arrived()
                kept = self._clear()
                yield
        finally:
            drop_gathered(self._gatherers)
            self._state.after()
        new = [p.grad for p in self._params if p.requires_grad and p.grad is not None]
        if kept:
            untouched = {id(grad) for grad, version in kept if grad._version == version}
            new = [grad for grad in new if id(grad) not in untouched]
        if not new:
            raise RuntimeError("perturbed(): no backward() ran inside; without it there is no SAM gradient")
        if self.scaler is not None:
            self._note_overflow(norm, new)
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
        masks = self._random_state() if same_masks else None
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
        self._check_method(state)
        checks.version(state, _VERSION)

    def _check_method(self, state: dict[str, Any]) -> None:
        method = state.get("method", "VSAM")
        if method != self._method:
            raise ValueError(f"method: expected a state of {self._method}, got one of {method}")

    def __repr__(self) -> str:
        shown = {"rho": self.rho, "adaptive": self.adaptive, "maximize": self.maximize}
        return self._shown(shown)

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
        now, then = list(self.model.parameters()), self._params
        if len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True)):
            raise RuntimeError(
                f"{what}: the model has other parameters than when this {type(self).__name__} was made; make "
                "a new one"
            )
        self._state.modules = list(self.model.modules())
        self._registrations = misuse.registrations()

    def _first_pass(self, closure: Closure) -> Tensor:
        """Runs the first pass, which has to clear the gradients that are there."""
        if not torch.compiler.is_compiling():
            self._watch.start(in_closure=True)
        return run(closure)

    def _second_pass(self, closure: Closure, masks: _RandomState | None) -> Tensor:
        with self.perturbed():
            if masks is not None:
                _set_random_state(masks)
            return run(closure)

    def _merged(self, places: list[int]) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """Weights and gradients of the parameters at ``places``, and for each the place whose radius it has.

        What lies in this process; parameters that share memory as one.
        """
        params = [self._perturbed[i] for i in places]
        weights, grads = self._local(params), self._local([p.grad for p in params])  # type: ignore[misc]
        if self._sharded or not (groups := self._memory.groups(weights)):
            return weights, grads, places
        for members in groups:
            if len({self._radius(params[i]) for i in members}) > 1:
                raise ValueError("groups: expected one rho for parameters that share memory, got several")
        kept = merge(groups, weights, grads)
        return [weights[i] for i in kept], [grads[i] for i in kept], [places[i] for i in kept]

    def _radius(self, p: nn.Parameter) -> float:
        return next((g["rho"] for g in self.groups if any(p is q for q in g["params"])), self.rho)

    def _ascend(
        self, weights: list[Tensor], grads: list[Tensor], backups: list[Tensor], places: list[int]
    ) -> Tensor:
        """Copies and perturbs ``weights``; returns the norm of the gradient."""
        how: dict[str, Any] = {"adaptive": self.adaptive, "maximize": self.maximize}
        if not self.groups and not self._sharded:
            return ops.perturb_(weights, grads, backups, self.rho, **how)
        accepted.perturb_(weights, grads, backups, self.rho, **how)  # of all, before the first is changed
        params = [self._perturbed[i] for i in places]
        whole = [p.grad for p in params] if self._sharded else grads
        factors = (params if self._sharded else weights) if self.adaptive else None
        norm = global_norm(whole, factors)  # type: ignore[arg-type]
        if self.groups:
            copy_all(weights, to=backups)  # of all: the first call below changes a part
        radius = {id(p): checks.rho(g["rho"]) for g in self.groups for p in g["params"]}
        radii = [radius.get(id(p), self.rho) for p in params]
        for rho in dict.fromkeys(radii):
            members = [i for i, r in enumerate(radii) if r == rho]
            w, g, b = ([tensors[i] for i in members] for tensors in (weights, grads, backups))
            ops.perturb_(w, g, b, rho, norm=norm.to(w[0].device), **how)
        return norm

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

    def _leave(self) -> None:
        """``.grad`` holds what the optimizer is to use."""
        if not torch.compiler.is_compiling():
            self._watch.start()
            misuse.leave(self)

    @torch.no_grad()
    def _note_overflow(self, norm: Tensor, grads: list[Tensor]) -> None:
        mark = norm - norm  # NaN if the first pass overflowed: the second one then ran at w
        for group in dict.fromkeys(ddp.process_group for ddp in self._ddps):
            dist.all_reduce(mark, group=group)  # if the first pass was not averaged
        # Into all: one that is not finite makes the scaler skip its optimizer, and there may be several.
        parts = self._local(grads)
        for device in dict.fromkeys(t.device for t in parts):
            torch._foreach_add_([t for t in parts if t.device == device], mark.to(device))
        self.overflow = ~global_norm(grads).isfinite()

    def _unscale(self, like: Tensor) -> Tensor:
        """1 over the scaler's factor."""
        assert self.scaler is not None
        factor: Tensor = self.scaler.scale(torch.ones_like(like))
        return factor.reciprocal()

    def _local(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [local(t) for t in tensors] if self._sharded else list(tensors)

    def _random_state(self) -> _RandomState:
        """Of the CPU's generator and of those of the model's GPUs."""
        gpus = {p.device.index for p in self._params if p.is_cuda}
        return {None: torch.get_rng_state(), **{i: torch.cuda.get_rng_state(i) for i in gpus}}


def _set_random_state(state: _RandomState) -> None:
    for gpu, value in state.items():
        torch.set_rng_state(value) if gpu is None else torch.cuda.set_rng_state(value, gpu)


@torch.enable_grad()
def run(closure: Closure) -> Tensor:
    loss = closure()
    if not isinstance(loss, Tensor):
        raise TypeError(f"closure: expected it to return its loss, a tensor, got {loss!r}")
    return loss.detach()
