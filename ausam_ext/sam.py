"""Sharpness-Aware Minimization around any optimizer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from . import checks, ops

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

    Running statistics of normalisation layers come from the first pass only. Nothing is synchronised.

    Args:
        model: the module to train. Its parameters and normalisation layers are looked up once, here.
        rho: radius of the perturbation, in units of the weights, not below 0.
        adaptive: ASAM's perturbation, relative to the size of each weight; use a ``rho`` about ten times as
            large.
    """

    def __init__(self, model: nn.Module, rho: float = 0.05, *, adaptive: bool = False) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(adaptive, bool):
            raise TypeError(f"adaptive: expected True or False, got {adaptive!r}")
        self.rho = checks.rho(rho)
        self.adaptive = adaptive
        self._params = list(model.parameters())
        self._statistics = [
            (m, name) for m in model.modules() if _tracks_statistics(m) for name in m._buffers
        ]
        # Copies of parameters and statistics, kept: to allocate them anew costs more than to fill them.
        self._saved: dict[int | tuple[int, str], Tensor] = {}
        self._inside = False

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Inside, the weights are ``w + epsilon``; outside, exactly ``w`` again, in the same memory.

        Entering takes the ascent direction from ``.grad`` and clears ``.grad``. Leaving, also by an
        exception, restores the bits of every weight and of the running statistics, and keeps the new
        ``.grad``. Weights without a gradient are not perturbed; a gradient that is zero or not finite
        perturbs none.

        Raises:
            RuntimeError: no parameter has a gradient, or the perturbation is already active.
        """
        if self._inside:
            raise RuntimeError(
                "perturbed(): already inside; leave the first perturbation before entering another"
            )
        params = [p for p in self._params if p.grad is not None]
        grads = [p.grad for p in params if p.grad is not None]
        if not params:
            raise RuntimeError("perturbed(): no parameter has a gradient; call backward() on the loss first")
        backups = [self._memory(i, p) for i, p in enumerate(self._params) if p.grad is not None]
        statistics = [
            (m, name, b) for m, name in self._statistics if m.training and (b := m._buffers[name]) is not None
        ]
        buffers = [b for _, _, b in statistics]
        saved = [self._memory((id(m), name), b) for m, name, b in statistics]
        ops.restore_(saved, buffers)
        ops.perturb_(params, grads, backups, self.rho, adaptive=self.adaptive)
        self._inside = True
        try:
            for p in params:
                p.grad = None
            yield
        finally:
            self._inside = False
            ops.restore_([*params, *buffers], [*backups, *saved])
            for module, name, buffer in statistics:
                module._buffers[name] = buffer  # a layer may have put another tensor in its place

    def backward(self, closure: Closure) -> tuple[Tensor, Tensor]:
        """Runs both passes and leaves the SAM gradient in ``.grad``.

        Args:
            closure: clears the gradients, runs forward and backward, returns its loss (of any shape).

        Returns:
            The losses at ``w`` and at ``w + epsilon``, detached.
        """
        loss = run(closure)
        with self.perturbed():
            loss_perturbed = run(closure)
        return loss, loss_perturbed

    def _memory(self, key: int | tuple[int, str], like: Tensor) -> Tensor:
        t = self._saved.get(key)
        if t is None or t.shape != like.shape or t.dtype != like.dtype or t.device != like.device:
            t = self._saved[key] = torch.empty_like(like, requires_grad=False)
        return t


def _tracks_statistics(module: nn.Module) -> bool:
    """Whether training changes buffers of this module: any layer with running statistics, also custom."""
    return any(module._buffers.get(name) is not None for name in ("running_mean", "running_var"))


@torch.enable_grad()
def run(closure: Closure) -> Tensor:
    loss = closure()
    if not isinstance(loss, Tensor):
        raise TypeError(f"closure: expected it to return its loss, a tensor, got {loss!r}")
    return loss.detach()
