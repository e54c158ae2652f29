"""Parameters that are spread over processes: DTensors, as ``fully_shard`` (FSDP2) makes them."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .reference import accumulation_dtype

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(t: Tensor) -> "TypeGuard[DTensor]":
    return hasattr(t, "to_local")  # a DTensor, told without importing what defines it


def local(t: Tensor) -> Tensor:
    """The part of a DTensor that lies in this process, in its own memory; another tensor itself."""
    if not is_sharded(t):
        return t
    with torch.no_grad():
        return t.to_local()


def gatherers(model: nn.Module) -> list[Any]:
    """The modules that ``fully_shard`` was applied to, told without importing what defines them."""
    return [m for m in model.modules() if hasattr(m, "set_reshard_after_backward")]


def drop_gathered(modules: Iterable[Any]) -> None:
    """Lets go of whole parameters that a forward pass gathered and no backward pass freed.

    The next pass would take them as they are, whatever has become of the shards since.
    """
    for module in modules:
        module.reshard()


@torch.no_grad()
def global_norm(tensors: Sequence[Tensor], factors: Sequence[Tensor] | None = None) -> Tensor:
    """``||t||``, or ``||t * f||``, over all tensors and processes: 0-d, float64, on the device of the first.

    Nothing is synchronised with the host. A plain tensor counts once: every process holds the same.
    """
    groups: dict[Any, list[Tensor]] = {}
    for i, t in enumerate(tensors):
        spread, part = (_spread(t), local(t)) if is_sharded(t) else ((), t)
        if factors is not None:
            dtype = accumulation_dtype([part])
            part = part.to(dtype) * local(factors[i]).to(dtype)
        groups.setdefault((spread, part.device, part.dtype), []).append(part)
    norms = []
    for (spread, _, _), parts in groups.items():
        each = torch.stack(torch._foreach_norm(parts, 2, accumulation_dtype(parts)))
        norms.append((spread, torch.linalg.vector_norm(each, dtype=torch.float64)))
    if len(norms) == 1 and not norms[0][0]:
        return norms[0][1]
    squares = [(spread, norm.square()) for spread, norm in norms]
    return _total(squares, local(tensors[0]).device).sqrt()


@torch.no_grad()
def global_dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """``<a, b>`` over all tensors and processes, as :func:`global_norm`."""
    groups: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    for x, y in zip(a, b, strict=True):
        spread, part, other = (_spread(x), local(x), local(y)) if is_sharded(x) else ((), x, y)
        groups.setdefault((spread, part.device, part.dtype), []).append((part, other))
    sums = []
    for (spread, _, kept), parts in groups.items():
        dtype = accumulation_dtype([parts[0][0]])
        if kept != dtype:
            parts = [(x.to(dtype), y.to(dtype)) for x, y in parts]
        products = torch._foreach_mul([x for x, _ in parts], [y for _, y in parts])
        sums.append((spread, torch.stack([product.sum() for product in products]).double().sum()))
    return _total(sums, local(a[0]).device)


def _total(parts: Iterable[tuple[Any, Tensor]], device: torch.device) -> Tensor:
    """The sum of 0-d tensors, each over the processes that it is spread over."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for spread, part in parts:
        for mesh, dim in spread:
            dist.all_reduce(part, group=mesh.get_group(dim))
        total += part.to(device)
    return total


def _spread(t: Tensor) -> tuple[tuple[Any, int], ...]:
    """Over which dimensions of which mesh the elements of ``t`` are spread."""
    if not is_sharded(t):
        return ()
    placements = enumerate(t.placements)
    # Not is_shard(): that is false of a shard of a shard, where fully_shard meets tensor parallelism.
    return tuple((t.device_mesh, dim) for dim, p in placements if not p.is_replicate())


def groups_of(tensors: Iterable[Tensor]) -> list[dist.ProcessGroup]:
    """The groups of processes that hold these tensors together, the last dimension of a mesh first."""
    meshes = dict.fromkeys(t.device_mesh for t in tensors if is_sharded(t))
    return [mesh.get_group(dim) for mesh in meshes for dim in reversed(range(mesh.ndim))]


def everyones(mine: dict[str, Any], groups: Iterable[dist.ProcessGroup]) -> dict[str, list[Any]]:
    """What every process of the groups has under each name, by rank."""
    gathered = [mine]
    for group in groups:
        parts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, gathered, group)
        gathered = [one for part in parts for one in part]
    return {name: [one[name] for one in gathered] for name in mine}
