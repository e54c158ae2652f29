"""Sharpness-Aware Minimization around any optimizer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import checks, guards, ops
from .copies import Copies, mark_unwritten, were_written
from .sharding import drop_gathered, gatherers, global_norm, is_sharded, local

Closure = Callable[[], Tensor]


class SAM:
    """Leaves the SAM gradient ``grad L(w + rho * g / ||g||)`` (AUSAM Eq. 3) in ``.grad``, for any optimizer.

    Two forms. Explicit, after ``loss.backward()``::

        with sam.perturbed():  # w + epsilon inside, exactly w again outside
            criterion(model(x), y).backward()
        optimizer.step()

    or with a closure that clears gradients, runs forward and backward and returns its loss::

        loss, loss_perturbed = sam.backward(closure)
        optimizer.step()

    Either pass may consist of several backward passes (gradient accumulation). Running statistics of
    normalisation layers come from the first pass only. Nothing is synchronised with the host.

    Args:
        model: the module to train, as the training loop calls it: wrapped by ``DistributedDataParallel``,
            ``fully_shard`` or ``torch.compile`` if it is. Its parameters and normalisation layers are looked
            up once, here; a model that gets others needs a new one.
        rho: radius of the perturbation, in units of the weights, not below 0.
        adaptive: ASAM's perturbation, relative to the size of each weight; use a ``rho`` about ten times as
            large.
        groups: parameters with a radius of their own, as in ``[{"params": model.head.parameters(), "rho":
            0.1}]``. The norm goes over all parameters.
        scaler: what scales the losses of both passes, for float16. An overflow in either pass then makes its
            ``step`` skip the optimizer's.

    Attributes:
        rho, groups: the radii, which may be changed between steps.
        overflow: with a ``scaler``, whether a gradient of the last step overflowed in either pass; 0-d bool.
    """

    def __init__(
        self,
        model: nn.Module,
        rho: float = 0.05,
        *,
        adaptive: bool = False,
        groups: Sequence[dict[str, Any]] = (),
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(adaptive, bool):
            raise TypeError(f"adaptive: expected True or False, got {adaptive!r}")
        if not isinstance(scaler, (torch.amp.GradScaler, type(None))):
            raise TypeError(f"scaler: expected a torch.amp.GradScaler, got {scaler!r}")
        if any(hasattr(m, "_fsdp_wrapped_module") for m in model.modules()):
            raise TypeError(
                "model: expected one sharded by fully_shard (FSDP2), got FullyShardedDataParallel, whose "
                "parameters do not tell what the other processes hold"
            )
        self.model = model
        wrapped = getattr(model, "_orig_mod", model)  # by torch.compile
        self._ddp = wrapped if isinstance(wrapped, DistributedDataParallel) else None
        self.rho = checks.rho(rho)
        self.adaptive = adaptive
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.overflow: Tensor | None = None
        self._gatherers = gatherers(model)
        drop_gathered(self._gatherers)
        self._params = list(model.parameters())
        self._sharded = any(map(is_sharded, self._params))
        self._registrations = guards.registrations()
        self.groups: list[dict[str, Any]] = [
            {"params": list(g["params"]), "rho": checks.rho(g["rho"])} for g in groups
        ]
        grouped = [id(p) for g in self.groups for p in g["params"]]
        if len(set(grouped)) < len(grouped) or not set(grouped) <= set(map(id, self._params)):
            raise ValueError("groups: expected parameters of the model, each at most once")
        self._statistics = _statistics_of(model)
        self._backups, self._saved = Copies(len(self._params)), Copies(len(self._statistics))

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Inside, the weights are ``w + epsilon``; outside, exactly ``w`` again, in the same memory.

        Entering takes the ascent direction from ``.grad`` and clears ``.grad``. Leaving, also by an
        exception, restores the bits of every weight and of the running statistics, and keeps the new
        ``.grad``. Weights without a gradient are not perturbed; a gradient that is zero or not finite
        perturbs none.

        Raises:
            RuntimeError: no parameter has a gradient, on entering or on leaving; the perturbation is already
                active; an optimizer of these weights steps inside; ``scaler.unscale_`` was called before; the
                model has other parameters or layers than when this was made.
        """
        if self in guards.INSIDE:
            raise RuntimeError(
                "perturbed(): already inside; leave the first perturbation before entering another"
            )
        self._check("perturbed()")
        params = [p for p in self._params if p.grad is not None]
        if not params:
            raise RuntimeError("perturbed(): no parameter has a gradient; call backward() on the loss first")
        drop_gathered(self._gatherers)
        weights = self._local(params)
        with_grad = [i for i, p in enumerate(self._params) if p.grad is not None]
        tracked = [
            i for i, (m, name) in enumerate(self._statistics) if m.training and m._buffers[name] is not None
        ]
        layers = [self._statistics[i] for i in tracked]
        buffers: list[Tensor] = [m._buffers[name] for m, name in layers]  # type: ignore[misc]
        backups, saved = self._backups.memory(with_grad, weights), self._saved.memory(tracked, buffers)
        moved = False
        try:
            try:
                norm = self._ascend(params, weights, backups, buffers, saved)
            except (TypeError, ValueError):  # before anything was changed
                # Copies from before the model was converted or moved do not fit. To look each time takes
                # longer.
                self._backups.forget()
                self._saved.forget()
                backups, saved = (
                    self._backups.memory(with_grad, weights),
                    self._saved.memory(tracked, buffers),
                )
                norm = self._ascend(params, weights, backups, buffers, saved)
            guards.INSIDE.append(self)
            moved = True
            _drop_casts()
            for p in params:
                p.grad = None
            yield
        finally:
            if self in guards.INSIDE:
                guards.INSIDE.remove(self)
            if moved or were_written(backups):  # a KeyboardInterrupt may come at the end of the ascent
                ops.restore_([*weights, *buffers], [*backups, *saved])
            drop_gathered(self._gatherers)
            _drop_casts()
            for (module, name), buffer in zip(layers, buffers, strict=True):
                module._buffers[name] = buffer  # a layer may have put another tensor in its place
        grads = [p.grad for p in self._params if p.grad is not None]
        if not grads:
            raise RuntimeError("perturbed(): no backward() ran inside; without it there is no SAM gradient")
        if self.scaler is not None:
            self._note_overflow(norm, grads)

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
        """
        if per_process and self._ddp is None:
            raise TypeError(
                "per_process: expected a SAM made with the DistributedDataParallel that wraps the model, got "
                f"one made with {type(self.model).__name__}"
            )
        if per_process and self._ddp is not None and self._ddp.static_graph:
            raise ValueError("per_process: expected static_graph=False, got True, with which no_sync() fails")
        masks = self._random_state() if same_masks else None
        with self._ddp.no_sync() if self._ddp and per_process else nullcontext():
            loss = run(closure)
        with self.perturbed():
            if masks is not None:
                _set_random_state(masks)
            loss_perturbed = run(closure)
        return loss, loss_perturbed

    def _check(self, what: str) -> None:
        """Refuses what would go wrong without a word; ``what`` is called."""
        if torch.compiler.is_compiling():
            return
        guards.refuse_lbfgs(self._params)
        if self.scaler is not None:
            guards.refuse_unscaled(self.scaler, what)
        if self._registrations == guards.registrations():
            return
        drop_gathered(self._gatherers)
        now, then = list(self.model.parameters()), self._params
        same = len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))
        if not same or _statistics_of(self.model) != self._statistics:
            raise RuntimeError(
                f"{what}: the model has other parameters or normalisation layers than when this "
                f"{type(self).__name__} was made; make a new one"
            )
        self._registrations = guards.registrations()

    def _ascend(
        self,
        params: list[nn.Parameter],
        weights: list[Tensor],
        backups: list[Tensor],
        buffers: list[Tensor],
        saved: list[Tensor],
    ) -> Tensor:
        """Copies the statistics, copies and perturbs ``weights``, the local parts of ``params``.

        Returns the norm of the gradient.
        """
        ops.restore_(saved, buffers)
        if not torch.compiler.is_compiling():
            mark_unwritten(backups)
        return self._perturb(params, weights, backups)

    def _perturb(self, params: list[nn.Parameter], weights: list[Tensor], backups: list[Tensor]) -> Tensor:
        grads = [p.grad for p in params if p.grad is not None]
        if not self.groups and not self._sharded:
            return ops.perturb_(weights, grads, backups, self.rho, adaptive=self.adaptive)
        parts = self._local(grads)
        checks.perturb_(weights, parts, backups, self.rho)  # of all, before the first is changed
        norm = global_norm(grads, params if self.adaptive else None)
        if self.groups:
            ops.restore_(backups, weights)  # of all: the first call below changes a part
        radius = {id(p): checks.rho(g["rho"]) for g in self.groups for p in g["params"]}
        radii = [radius.get(id(p), self.rho) for p in params]
        for rho in dict.fromkeys(radii):
            members = [i for i, r in enumerate(radii) if r == rho]
            w, g, b = ([tensors[i] for i in members] for tensors in (weights, parts, backups))
            ops.perturb_(w, g, b, rho, adaptive=self.adaptive, norm=norm.to(w[0].device))
        return norm

    @torch.no_grad()
    def _note_overflow(self, norm: Tensor, grads: list[Tensor]) -> None:
        mark = norm - norm  # NaN if the first pass overflowed: the second one then ran at w
        if self._ddp is not None:
            dist.all_reduce(mark, group=self._ddp.process_group)  # if the first pass was not averaged
        # Into all: one that is not finite makes the scaler skip its optimizer, and there may be several.
        parts = self._local(grads)
        for device in dict.fromkeys(t.device for t in parts):
            torch._foreach_add_([t for t in parts if t.device == device], mark.to(device))
        self.overflow = ~global_norm(grads).isfinite()

    def _local(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [local(t) for t in tensors] if self._sharded else list(tensors)

    def _random_state(self) -> dict[int | None, Tensor]:
        """Of the CPU's generator and of those of the model's GPUs."""
        gpus = {p.device.index for p in self._params if p.is_cuda}
        return {None: torch.get_rng_state(), **{i: torch.cuda.get_rng_state(i) for i in gpus}}


def _drop_casts() -> None:
    """Autocast keeps what it cast for as long as its block lasts: the weights before the change. (Compiled
    code keeps nothing, and Dynamo of torch 2.11 does not know the call.)"""
    if not torch.compiler.is_compiling():
        torch.clear_autocast_cache()


def _set_random_state(state: dict[int | None, Tensor]) -> None:
    for gpu, value in state.items():
        torch.set_rng_state(value) if gpu is None else torch.cuda.set_rng_state(value, gpu)


def _statistics_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The buffers of all layers with running statistics, also custom ones: what training changes."""
    return [
        (m, name)
        for m in model.modules()
        if any(m._buffers.get(statistic) is not None for statistic in ("running_mean", "running_var"))
        for name in m._buffers
    ]


@torch.enable_grad()
def run(closure: Closure) -> Tensor:
    loss = closure()
    if not isinstance(loss, Tensor):
        raise TypeError(f"closure: expected it to return its loss, a tensor, got {loss!r}")
    return loss.detach()
