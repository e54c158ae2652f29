"""LookSAM: the part of SAM's gradient that is orthogonal to the plain one, reused for k iterations.

In iteration ``t``, from 0 on, with ``g = grad L(w)`` and norms over all parameters together::

    t % k == 0:  g_s = grad L(w + rho * g / ||g||)
                 g_v = g_s - <g_s, g> / ||g||^2 * g
                 w <- base(w, g_s)
    otherwise:   w <- base(w, g + alpha * ||g|| / ||g_v|| * g_v)        g itself if g_v = 0

Cost: ``1 + 1/k`` forwards and backwards, of SAM's 2, the norm of ``g`` in each iteration, and the projection
in those with two passes. State: ``g_v``, one copy of the weights, and its norm.

Source: Liu et al., "Towards Efficient and Scalable Sharpness-Aware Minimization" (CVPR 2022, arXiv
2203.02714). Some implementations take norms and projection of each tensor by itself; here, as in the paper,
they go over all. ``alpha = 0.7`` is the paper's for vision transformers; 0.1 was found best for CNNs on
CIFAR-100 by the paper of Momentum-SAM.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import arguments, checks, ops
from ..arguments import Options
from ..reuse import ReusingSAM
from ..sharding import global_dot, global_norm

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LookSAM(ReusingSAM):
    """Takes the second pass in every ``every``-th iteration, reuses ``g_v`` in the others.

    ``g_v`` is of ``params``.

    Args:
        model, rho, options: as for :class:`ausam_ext.SAM`.
        every: ``k``, from 1 (SAM).
        alpha: length of what is reused, in that of the gradient, from 0 (:class:`PeriodicSAM`).
    """

    _method = "LookSAM"

    @arguments.explained
    def __init__(
        self,
        model: arguments.Model,
        rho: float = 0.05,
        *,
        every: int = 5,
        alpha: float = 0.7,
        **options: "Unpack[Options]",
    ) -> None:
        super().__init__(model, rho, {"every": every, "alpha": alpha}, **options)
        self.every = checks.integer("every", every, 1)
        self.alpha = checks.number("alpha", alpha, "a number not below 0", lambda v: v >= 0)
        self._norm = torch.zeros((), dtype=torch.float64, device="cpu")  # of g_v

    def _decides(self) -> bool:
        return self._iteration % self.every == 0

    def _make(self, psf: list[Tensor], grads: list[Tensor]) -> None:
        share = _ratio(global_dot(grads, psf), global_norm(psf).square())
        own = self._local(psf)
        for device in dict.fromkeys(t.device for t in own):
            torch._foreach_mul_([t for t in own if t.device == device], -share.to(device))
        ops.psf_reuse_(own, self._local(grads), 1.0)
        self._norm = global_norm(psf)

    def _add(self, grads: list[Tensor], psf: list[Tensor]) -> None:
        scale = self.alpha * _ratio(global_norm(grads), self._norm)
        ops.psf_reuse_(self._local(grads), self._local(psf), scale)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "psf_norm": self._norm}

    def _load_rest(self, state: dict[str, Any], device: torch.device) -> None:
        self._norm = state["psf_norm"].to(device, torch.float64, copy=True)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``, or 0 if that is not finite, as after an overflow or for a norm of 0."""
    ratio = a / b.to(a.device)
    return ratio.where(ratio.isfinite(), 0)
