"""What a ``GradScaler`` needs to know: gradients of both passes are scaled, and either may overflow."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .sharding import global_norm, local


def inverse_scale(scaler: torch.amp.GradScaler, like: Tensor) -> Tensor:
    """1 over the factor that the scaler multiplies losses by, as a tensor like ``like``."""
    factor: Tensor = scaler.scale(torch.ones_like(like))
    return factor.reciprocal()


@torch.no_grad()
def spread_overflow(norm: Tensor, grads: list[Tensor], ddps: Iterable[DistributedDataParallel]) -> Tensor:
    """Makes all ``grads`` NaN if the first pass overflowed, whose ``norm`` says so: the second then ran at w.

    All of them: one that is not finite makes the scaler skip its optimizer, and there may be several.

    Returns:
        Whether either pass overflowed, 0-d bool.
    """
    mark = norm - norm
    for group in dict.fromkeys(ddp.process_group for ddp in ddps):
        dist.all_reduce(mark, group=group)  # if the first pass was not averaged
    parts = [local(g) for g in grads]
    for device in dict.fromkeys(t.device for t in parts):
        torch._foreach_add_([t for t in parts if t.device == device], mark.to(device))
    return ~global_norm(grads).isfinite()
