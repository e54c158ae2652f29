"""SAM's step up, ``w += rho * g / (||g|| + 1e-12)`` (AUSAM Eq. 2), over whatever the parameters are.

Most are plain tensors with one radius: one call of ``perturb_``. Parameters that share memory are one weight.
Of sharded ones this process moves its part, by the norm over all processes. Groups have their own radii,
and still one norm.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, cast

from torch import Tensor, nn

from . import checks, ops
from .backups import Backups, copy_all
from .ops import accepted
from .sharding import global_norm, local
from .shared_memory import SharedMemory, merge

Groups: TypeAlias = Sequence[dict[str, Any]]  # of parameters with a radius of their own


class Targets(NamedTuple):
    """What one step moves, one for one: tensors of this process, and the parameters that they belong to."""

    params: list[nn.Parameter]
    weights: list[Tensor]
    grads: list[Tensor]
    backups: list[Tensor]


class Perturbation:
    """The step up of one SAM, and the memory for its backups.

    Args:
        params: what is perturbed as long as it is trained and has a gradient.
        sharded: whether there are DTensors among the model's parameters.
    """

    def __init__(self, params: Sequence[nn.Parameter], sharded: bool) -> None:
        self._params, self._sharded = params, sharded
        self._memory, self._backups = SharedMemory(), Backups()

    def targets(self, rho: float, groups: Groups) -> Targets | None:
        """What the next step moves; None if nothing has a gradient."""
        places = [i for i, p in enumerate(self._params) if p.requires_grad and p.grad is not None]
        if not places:
            return None
        params = [self._params[i] for i in places]
        weights: list[Tensor] = list(params)
        grads = [cast(Tensor, p.grad) for p in params]
        if self._sharded:
            weights, grads = [local(w) for w in weights], [local(g) for g in grads]
        if not self._sharded and (shared := self._memory.groups(weights)):
            radii = _radii(params, rho, groups)
            for members in shared:
                if len({radii[i] for i in members}) > 1:
                    raise ValueError("groups: expected one rho for parameters that share memory, got several")
            kept = merge(shared, weights, grads)
            params, places = [params[i] for i in kept], [places[i] for i in kept]
            weights, grads = [weights[i] for i in kept], [grads[i] for i in kept]
        return Targets(params, weights, grads, self._backups.of(places, weights))

    def apply(
        self, targets: Targets, rho: float, groups: Groups, *, adaptive: bool, maximize: bool
    ) -> Tensor:
        """Fills the backups and moves the weights; returns the norm of the gradient."""
        params, weights, grads, backups = targets
        how: dict[str, Any] = {"adaptive": adaptive, "maximize": maximize}
        if not groups and not self._sharded:
            return ops.perturb_(weights, grads, backups, rho, **how)
        accepted.perturb_(weights, grads, backups, rho, **how)  # of all, before the first is changed
        whole = [cast(Tensor, p.grad) for p in params] if self._sharded else grads
        factors = (params if self._sharded else weights) if adaptive else None
        norm = global_norm(whole, factors)
        if groups:
            copy_all(weights, to=backups)  # of all: the first call below changes a part
        radii = _radii(params, rho, groups)
        for radius in dict.fromkeys(radii):
            members = [i for i, r in enumerate(radii) if r == radius]
            w, g, b = ([tensors[i] for i in members] for tensors in (weights, grads, backups))
            ops.perturb_(w, g, b, radius, norm=norm.to(w[0].device), **how)
        return norm


def _radii(params: Sequence[nn.Parameter], rho: float, groups: Groups) -> list[float]:
    own = {id(p): checks.rho(group["rho"]) for group in groups for p in group["params"]}
    return [own.get(id(p), rho) for p in params]
