"""Sharpness-Aware Minimization around any optimizer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from . import checks, ops
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
            up once, here.
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
        self._own = {id(p) for p in self._params}
        self.groups: list[dict[str, Any]] = [
            {"params": list(g["params"]), "rho": checks.rho(g["rho"])} for g in groups
        ]
        grouped = [id(p) for g in self.groups for p in g["params"]]
        if len(set(grouped)) < len(grouped) or not set(grouped) <= self._own:
            raise ValueError("groups: expected parameters of the model, each at most once")
        self._statistics = [
            (m, name) for m in model.modules() if _tracks_statistics(m) for name in m._buffers
        ]
        # Copies of both, kept: to allocate them anew costs more than to fill them.
        self._forget_copies()

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Inside, the weights are ``w + epsilon``; outside, exactly ``w`` again, in the same memory.

        Entering takes the ascent direction from ``.grad`` and clears ``.grad``. Leaving, also by an
        exception, restores the bits of every weight and of the running statistics, and keeps the new
        ``.grad``. Weights without a gradient are not perturbed; a gradient that is zero or not finite
        perturbs none.

        Raises:
            RuntimeError: no parameter has a gradient, on entering or on leaving; the perturbation is already
                active; an optimizer of these weights steps inside.
        """
        if self in _INSIDE:
            raise RuntimeError(
                "perturbed(): already inside; leave the first perturbation before entering another"
            )
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
        arguments = (params, weights, with_grad, buffers, tracked)
        try:
            norm, backups, saved = self._ascend(*arguments)
        except (TypeError, ValueError):  # before anything was changed
            # Copies from before the model was converted or moved do not fit. To look each time takes longer.
            self._forget_copies()
            norm, backups, saved = self._ascend(*arguments)
        _INSIDE.append(self)
        try:
            _drop_casts()
            for p in params:
                p.grad = None
            yield
        finally:
            _INSIDE.remove(self)
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

    def _forget_copies(self) -> None:
        self._saved_params: list[Tensor | None] = [None] * len(self._params)
        self._saved_statistics: list[Tensor | None] = [None] * len(self._statistics)

    def _ascend(
        self,
        params: list[nn.Parameter],
        weights: list[Tensor],
        with_grad: list[int],
        buffers: list[Tensor],
        tracked: list[int],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Copies the statistics, copies and perturbs ``weights``, the local parts of ``params``.

        Returns the norm of the gradient and both copies.
        """
        backups = _memory(self._saved_params, with_grad, weights)
        saved = _memory(self._saved_statistics, tracked, buffers)
        ops.restore_(saved, buffers)
        return self._perturb(params, weights, backups), backups, saved

    def _perturb(self, params: list[nn.Parameter], weights: list[Tensor], backups: list[Tensor]) -> Tensor:
        grads = [p.grad for p in params if p.grad is not None]
        if not self.groups and not self._sharded:
            return ops.perturb_(weights, grads, backups, self.rho, adaptive=self.adaptive)
        parts = self._local(grads)
        checks.perturb_(weights, parts, backups, self.rho)  # of all, before the first is changed
        norm = global_norm(grads, params if self.adaptive else None)
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
        first = local(grads[0])
        first.add_(mark.to(first.device))  # one gradient that is not finite makes the scaler skip the step
        self.overflow = ~global_norm(grads).isfinite()

    def _local(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [local(t) for t in tensors] if self._sharded else list(tensors)

    def _random_state(self) -> dict[int | None, Tensor]:
        """Of the CPU's generator and of those of the model's GPUs."""
        gpus = {p.device.index for p in self._params if p.is_cuda}
        return {None: torch.get_rng_state(), **{i: torch.cuda.get_rng_state(i) for i in gpus}}


_INSIDE: list[SAM] = []  # whose weights are perturbed now


def _refuse_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for sam in _INSIDE:
        if any(id(p) in sam._own for group in optimizer.param_groups for p in group["params"]):
            raise RuntimeError(
                "optimizer.step() inside perturbed(): what it changes would be lost when the weights come "
                "back; call it after the block"
            )


register_optimizer_step_pre_hook(_refuse_step)


def _memory(kept: list[Tensor | None], places: list[int], tensors: list[Tensor]) -> list[Tensor]:
    """What is kept at ``places``, made where it is missing."""
    found = []
    for i, like in zip(places, tensors, strict=True):
        t = kept[i]
        if t is None:
            t = kept[i] = torch.empty_like(like, requires_grad=False)
        found.append(t)
    return found


def _drop_casts() -> None:
    """Autocast keeps what it cast for as long as its block lasts: the weights before the change. (Compiled
    code keeps nothing, and Dynamo of torch 2.11 does not know the call.)"""
    if not torch.compiler.is_compiling():
        torch.clear_autocast_cache()


def _set_random_state(state: dict[int | None, Tensor]) -> None:
    for gpu, value in state.items():
        torch.set_rng_state(value) if gpu is None else torch.cuda.set_rng_state(value, gpu)


def _tracks_statistics(module: nn.Module) -> bool:
    """Whether training changes buffers of this module: any layer with running statistics, also custom."""
    return any(module._buffers.get(name) is not None for name in ("running_mean", "running_var"))


@torch.enable_grad()
def run(closure: Closure) -> Tensor:
    loss = closure()
    if not isinstance(loss, Tensor):
        raise TypeError(f"closure: expected it to return its loss, a tensor, got {loss!r}")
    return loss.detach()
