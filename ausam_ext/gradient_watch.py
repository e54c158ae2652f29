"""Gradients that are not what the next pass takes them for: left from the last step, or clipped in between.

One parameter tells for all. Whether the loop cleared ``.grad`` is seen when the next backward pass adds to
it: it is another tensor then, or None, or holds zeros, or was changed in place after an optimizer had used
it. No value is fetched from the device unless the others fail to tell.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from . import misuse
from .sharding import is_sharded, local
from .shared_memory import owns_its_memory

_ENOUGH = 16  # elements that do not all shrink by chance

LEFT = (
    "{what}: {cause}.grad still holds what the last step left there, to which this pass was added. Clear the "
    "gradients between steps: optimizer.zero_grad(), or model.zero_grad() if the optimizer does not train "
    "all weights of the model. To accumulate, run the first pass of all micro-batches and then the second "
    "pass of all of them in one perturbed() block, then step:\n\n"
    "    for batch in micro_batches: loss(batch).backward()\n"
    "    with sam.perturbed():\n"
    "        for batch in micro_batches: loss(batch).backward()\n"
    "    optimizer.step()\n"
    "    optimizer.zero_grad()\n"
)
CLIPPED = (
    "{what}: the gradient was made smaller after the backward pass; clip it after {what}. The PSF is the "
    "difference of both passes' gradients, and would hold what the clip took away"
)


class GradientWatch:
    """Watches the gradient of one of ``params`` from the end of a step to the entry of the next second pass.

    Args:
        params: of a SAM.
        clips: also look for gradients that were clipped.
    """

    def __init__(self, params: Sequence[nn.Parameter], clips: bool) -> None:
        self._params, self._clips = list(params), clips
        self._suspects: list[nn.Parameter] = []
        # fully_shard adds to the gradient of a sharded parameter itself, of which no hook hears.
        self._unheard = 1 if any(map(is_sharded, params)) else 0
        self._probe: nn.Parameter | None = None
        self._left: Tensor | None = None  # what was in .grad at the start, as long as it was not cleared
        self._version = 0  # that it has unless something but a backward pass changed it
        self._steps = 0  # of optimizers, at the start; -1 if only clearing can change the gradient
        self._counts = True  # whether the version tells
        self._added = False  # whether a backward pass added to what is left
        self._nonzero: Tensor | None = None  # whether it had a value whenever a backward pass added to it
        # What the last backward pass made: the gradient, its version, a copy.
        self._made: tuple[Tensor, int, Tensor] | None = None
        self._open = clips  # whether a first pass may come
        self._handles: list[Any] = []
        if clips:
            self._choose()

    def __getstate__(self) -> dict[str, Any]:
        return {"params": self._params, "clips": self._clips}

    def __setstate__(self, state: dict[str, Any]) -> None:
        GradientWatch.__init__(self, **state)

    def start(self, in_closure: bool = False) -> None:
        """What is in ``.grad`` now has to be cleared before the next first pass."""
        p = self._probe
        grad = None if p is None or not p.requires_grad else p.grad
        if grad is None:
            p = self._choose()
            grad = None if p is None else p.grad
        self._made, self._open = None, self._clips
        if grad is not None and grad is self._left and in_closure:  # watched since the last step
            self._version, self._steps = grad._version, -1
            return
        self._left = None if self._is_capturing() else grad
        if self._left is not None:
            self._version, self._nonzero, self._added = self._left._version, None, False
            self._steps = -1 if in_closure else misuse.steps()
            self._counts = owns_its_memory(self._left)  # else other gradients move its version too

    def suspect(self, params: list[nn.Parameter]) -> None:
        """Watches one of these, which an optimizer does not train, so that its zero_grad() leaves them."""
        if params:
            self._suspects = params
            self._choose()
            self.start()

    def check(self, what: str) -> None:
        """Refuses a gradient that the first pass was added to, or that was clipped since; ends the watch."""
        left, made = self._left, self._made
        self._left, self._made, self._open = None, None, False
        if (left is None and made is None) or self._is_capturing():
            return
        p = self._probe
        grad = p.grad if p is not None and p.requires_grad else None  # a frozen one takes no part
        if left is not None and grad is left and self._is_still_there(left):
            nonzero = local(left).any() if self._nonzero is None else self._nonzero
            if nonzero:
                cause = "the closure did not clear the gradients: " if self._steps < 0 else ""
                self.start()
                raise RuntimeError(LEFT.format(what=what, cause=cause))
        if made is not None and grad is made[0] and grad._version != made[1] and _is_smaller(grad, made[2]):
            raise RuntimeError(CLIPPED.format(what=what))

    def _choose(self) -> nn.Parameter | None:
        """The smallest that is large enough, best one with a gradient, which stays in memory while held."""
        suspects = [p for p in self._suspects if p.requires_grad and p.grad is not None]
        trained = suspects or [p for p in self._params if p.requires_grad and not is_lazy(p)]
        if not trained:
            return None
        p = min(trained, key=lambda p: (p.grad is None, p.numel() < _ENOUGH, abs(p.numel() - _ENOUGH)))
        if p is not self._probe:
            self._probe = p
            for handle in self._handles:
                handle.remove()
            self._handles = [
                p.register_hook(_hook(self, GradientWatch._before)),
                p.register_post_accumulate_grad_hook(_hook(self, GradientWatch._after)),
            ]
        return p

    def _before(self, _: Tensor) -> None:
        """A backward pass is going to add to the gradient, or only to compute it (torch.autograd.grad)."""
        left = self._left
        if left is None:
            return
        if self._probe is None or self._probe.grad is not left or self._was_cleared(left):
            self._left = None
            return
        nonzero = left.any()
        self._nonzero = nonzero if self._nonzero is None else self._nonzero & nonzero

    def _is_still_there(self, left: Tensor) -> bool:
        """A backward pass added to it; otherwise the loop may have put it there anew."""
        added = self._added or (self._unheard > 0 and left._version == self._version + self._unheard)
        return added and not self._was_cleared(left)

    def _was_cleared(self, left: Tensor) -> bool:
        """In place: nothing else writes to it after a step, or in a closure before its backward pass."""
        moved = left._version > self._version + self._unheard
        return self._counts and moved and misuse.steps() != self._steps

    def _after(self, p: Tensor) -> None:
        """A backward pass has added to the gradient."""
        left = self._left
        if left is not None and p.grad is left:
            self._version, self._added = left._version, True
        if self._open and p.grad is not None:
            self._made = (p.grad, p.grad._version, p.grad.detach().clone())

    def _is_capturing(self) -> bool:
        p = self._probe
        return p is not None and p.is_cuda and torch.cuda.is_current_stream_capturing()


def _is_smaller(now: Tensor, then: Tensor) -> bool:
    """No element is larger or of another sign, and some are smaller: by more than a rounding."""
    within = ((now.abs() <= then.abs()) & (now * then >= 0)).all()
    return bool(within & ~torch.isclose(now, then, rtol=1e-3, atol=0).all())


def _hook(watch: GradientWatch, call: Callable[[GradientWatch, Tensor], None]) -> Callable[[Tensor], None]:
    """Does not keep the watch alive, nor does Dynamo, which looks into hooks too, fail at it."""
    reference = ref(watch)

    def hook(t: Tensor) -> None:
        alive = reference()
        if alive is not None:
            call(alive, t)

    return hook
