"""That the processes which train one model are set alike."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .sharding import everyones, groups_of


def refuse_differences(
    arguments: dict[str, Any],
    state: dict[str, Any],
    ddps: Iterable[DistributedDataParallel],
    params: Iterable[Tensor],
) -> None:
    """Compares ``arguments`` and ``state`` over the processes that average the gradients or share ``params``.

    Raises:
        ValueError: in every process, if one is different in one of them.
    """
    mine = {**arguments, **state}
    groups: list[dist.ProcessGroup] = list(dict.fromkeys(ddp.process_group for ddp in ddps))
    for name, values in everyones(mine, groups or groups_of(params)).items():
        if any(value != mine[name] for value in values):
            kind = "argument" if name in arguments else "loaded state"
            raise ValueError(f"{name}: expected the same {kind} in every process, got {values} by rank")


def digest(generator: torch.Generator) -> str:
    """Short, and different for generators that draw differently."""
    return blake2b(bytes(generator.get_state().tolist())).hexdigest()
