"""One pass of a closure, and the random state from which a second one repeats it."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Closure: TypeAlias = Callable[[], Tensor]
RandomState: TypeAlias = dict[int | None, Tensor]  # of the CPU's generator, under None, and of GPUs'


@torch.enable_grad()
def run(closure: Closure) -> Tensor:
    """Runs it, also under ``no_grad``; its loss, detached."""
    loss = closure()
    if not isinstance(loss, Tensor):
        raise TypeError(f"closure: expected it to return its loss, a tensor, got {loss!r}")
    return loss.detach()


def random_state(params: Sequence[Tensor]) -> RandomState:
    """Of the CPU's generator and of those of the GPUs that the parameters are on."""
    gpus = {p.device.index for p in params if p.is_cuda}
    return {None: torch.get_rng_state(), **{i: torch.cuda.get_rng_state(i) for i in gpus}}


def set_random_state(state: RandomState) -> None:
    for gpu, value in state.items():
        torch.set_rng_state(value) if gpu is None else torch.cuda.set_rng_state(value, gpu)
