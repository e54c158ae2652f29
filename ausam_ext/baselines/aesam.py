"""AE-SAM: SAM while the gradient is large for its recent past.

In iteration ``t`` of ``T``, with ``n_t = ||grad L(w)||^2``::

    mu <- d * mu + (1 - d) * n_t
    v  <- d * v + (1 - d) * (n_t - mu)^2         with the new mu
    c  =  (t / T) * lambda_1 + (1 - t / T) * lambda_2
    n_t >= mu + c * sqrt(v):  w <- base(w, grad L(w + rho * g / ||g||)),  otherwise  w <- base(w, g)

``c`` falls from ``lambda_2`` to ``lambda_1``, so that the share of second passes rises; it is a half on
average for normal ``n_t`` if ``lambda_1 = -lambda_2``. At the start ``mu = 0`` and ``v = exp(-10)``, which
makes the first iteration one of SAM.

Cost: ``1 + q`` forwards and backwards, of SAM's 2; ``q`` is the share of second passes; and the host
waits for the norm in every step. State: ``mu``, ``v`` and the number of the iteration.

Source: Jiang, Yang, Zhang and Kwok, "An Adaptive Policy to Employ Sharpness-Aware Minimization" (ICLR 2023,
arXiv 2304.14647). No official code was found: ``d = 0.9`` and ``lambda = +-1`` are what descriptions of it
have, and fit the 50 % that are printed; the start values fade within 50 iterations.
"""

import math
from typing import TYPE_CHECKING, Any

from .. import arguments, checks
from ..arguments import Options
from ..schedule import ScheduledSAM
from ..sharding import global_norm

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AESAM(ScheduledSAM):
    """Takes the second pass if the gradient is large for its recent past.

    :meth:`decide` looks at the gradient of the first pass: call it after ``backward()``, and clip after the
    iteration's last pass. It fetches one number from the device, the norm over ``params``. With several
    processes that gradient is already averaged, so that all decide alike. A norm that is not finite takes no
    second pass and leaves mean and variance as they are; with a ``scaler``, the norm is unscaled.

    Args:
        model, rho, options: as for :class:`ausam_ext.SAM`.
        total_steps: ``T``, the iterations of the run; later ones decide as the last.
        decay: ``d``, from 0 to below 1.
        lambda1, lambda2: ``c`` at the end and at the start.
    """

    _method = "AESAM"
    _keeps_difference = True  # a clip would spoil the statistics

    @arguments.explained
    def __init__(
        self,
        model: arguments.Model,
        rho: float = 0.05,
        *,
        total_steps: int,
        decay: float = 0.9,
        lambda1: float = -1.0,
        lambda2: float = 1.0,
        **options: "Unpack[Options]",
    ) -> None:
        settings = {"total_steps": total_steps, "decay": decay, "lambda1": lambda1, "lambda2": lambda2}
        super().__init__(model, rho, settings, **options)
        self.total_steps = checks.integer("total_steps", total_steps, 1)
        self.decay = checks.number("decay", decay, "a number from 0 to below 1", lambda v: 0 <= v < 1)
        self.lambda1 = checks.number("lambda1", lambda1, "a number", lambda v: True)
        self.lambda2 = checks.number("lambda2", lambda2, "a number", lambda v: True)
        self._mean, self._variance = 0.0, math.exp(-10)

    def _decides(self) -> bool:
        grads = [p.grad for p in self._perturbed if p.requires_grad and p.grad is not None]
        if not grads:
            raise RuntimeError(
                "decide(): no parameter has a gradient; AE-SAM decides by that of the first pass: call "
                "backward() on the loss first"
            )
        self._check("decide()")
        norm = global_norm(grads).item()
        if self.scaler is not None:
            norm /= self.scaler.get_scale()
        if not math.isfinite(norm):
            return False
        square, d = norm * norm, self.decay
        self._mean = d * self._mean + (1 - d) * square
        self._variance = d * self._variance + (1 - d) * (square - self._mean) ** 2
        share = min(self._iteration / self.total_steps, 1)
        c = share * self.lambda1 + (1 - share) * self.lambda2
        return square >= self._mean + c * math.sqrt(self._variance)

    def _decided_by(self) -> dict[str, Any]:
        return {"mean": self._mean, "variance": self._variance}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._decided_by()}

    def _load(self, state: dict[str, Any]) -> None:
        self._mean, self._variance = state["mean"], state["variance"]
