"""Momentum-SAM: the gradient is taken where the momentum leads (Becker et al. 2024, arXiv 2401.12033).

``v`` is the optimizer's momentum. In each step:

1. ``w~ = w - rho * v / ||v||``, norm over all parameters that have a ``v``; ``w`` itself if ``v = 0``
2. ``g = grad L(w~)``, 1 forward and 1 backward
3. back to ``w``, exactly; the optimizer's step by ``g``

Cost: 1 forward and 1 backward, of SAM's 2 and 2; one copy of the weights. With ``rho = lr * momentum *
||v||`` the ``w~`` are the weights of SGD with Nesterov's momentum.

The official code is an optimizer that leaves the weights at ``w~`` between steps and decays them
there; here any optimizer does, as always, at ``w``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from .. import checks, misuse, ops
from ..backups import Backups, Displaced
from ..sharding import global_norm, is_sharded, local
from ..shared_memory import SharedMemory, merge

_MOMENTA = ("momentum_buffer", "exp_avg")
_ACCEPTED = "one that keeps momentum, as momentum_buffer (SGD with momentum) or as exp_avg (Adam, AdamW)"
_VERSION = 1


class MomentumSAM:
    """Takes the gradient at ``w - rho * v / ||v||``, for any optimizer that keeps momentum::

        with msam.perturbed():
            criterion(model(x), y).backward()
        optimizer.step()

    ``v`` is SGD's ``momentum_buffer`` or Adam's ``exp_avg``: what the optimizer lowers the weights by, also
    with ``maximize=True``. There may be several passes in the block, and a ``GradScaler`` is used as without
    it. Nothing is synchronised.

    Running statistics, as of BatchNorm, come from the perturbed weights: before an evaluation, estimate them
    at ``w``, with ``torch.optim.swa_utils.update_bn``. If the model is in shards (``fully_shard``), call its
    ``reshard()`` between a forward pass without a backward and the block.

    Args:
        optimizer: whose parameters are perturbed, those with ``requires_grad``.
        rho: radius, in units of the weights, not below 0; may be changed between steps. 3 in published runs.
    """

    def __init__(self, optimizer: Optimizer, rho: float = 0.05) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, LBFGS):
            raise TypeError(f"optimizer: {misuse.LBFGS_REFUSED}")
        if hasattr(optimizer, "consolidate_state_dict"):
            raise TypeError(
                f"optimizer: expected {_ACCEPTED} in each process, got {type(optimizer).__name__}"
            )
        if not any(group.get("momentum", True) for group in optimizer.param_groups):
            raise ValueError(f"optimizer: expected {_ACCEPTED}, got momentum=0")
        self.optimizer = optimizer
        self.rho = checks.rho(rho)
        self._memory, self._backups = SharedMemory(), Backups()

    def __repr__(self) -> str:
        return f"MomentumSAM({type(self.optimizer).__name__}, rho={self.rho})"

    @property
    def _params(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Inside, the weights are ``w - rho * v / ||v||``; outside, exactly ``w`` again, in the same memory.

        Also after an exception. What the passes inside leave in ``.grad`` stays. A weight without momentum,
        as before the optimizer's first step, is not perturbed, and none is if the norm is below 1e-12 or not
        finite. Weights that share memory are perturbed as the one weight that they are.

        Raises:
            TypeError: the optimizer has stepped and keeps no momentum.
            RuntimeError: already inside; an optimizer of these weights steps inside; inside
                ``parametrize.cached()``.
        """
        misuse.refuse_inside(self)
        misuse.refuse_cached_weights("perturbed()")
        weights, v = self._weights_and_momenta()
        whole, places = v, list(range(len(v)))
        if any(map(is_sharded, v)):
            weights, v = [local(t) for t in weights], [local(t) for t in v]
        elif groups := self._memory.groups(weights):
            places = merge(groups, weights, v)
            weights, v = [weights[i] for i in places], [v[i] for i in places]
            whole = v
        backups = self._backups.of(places, weights)
        with Displaced(self, weights, backups) as displaced:
            if weights:
                # To which perturb_() adds 1e-12, as SAM's definition does and this one does not.
                norm = global_norm(whole).to(weights[0].device) - 1e-12
                ops.perturb_(weights, v, backups, self.rho, maximize=True, norm=norm)
            displaced.arrived()
            yield

    def _weights_and_momenta(self) -> tuple[list[Tensor], list[Tensor]]:
        states = [(p, self.optimizer.state.get(p)) for p in self._params if p.requires_grad]
        found = [(p, state[name]) for p, state in states if state for name in _MOMENTA if name in state]
        if not found and any(state for _, state in states):
            raise TypeError(f"optimizer: expected {_ACCEPTED}, got {type(self.optimizer).__name__}")
        kept = [(p, v) for p, v in found if v is not None]
        return [p for p, _ in kept], [v for _, v in kept]

    def state_dict(self) -> dict[str, Any]:
        """Nothing but its kind, as SAM's: the momentum is the optimizer's."""
        return {"version": _VERSION, "method": "MomentumSAM"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            KeyError, ValueError: the state is not one of a MomentumSAM, or of another version.
        """
        checks.method(state, "MomentumSAM")
        checks.version(state, _VERSION)
