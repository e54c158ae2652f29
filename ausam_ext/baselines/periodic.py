"""SAM every k-th iteration: SAM-5 and SAM-10 of the papers' tables.

In iteration ``t``, from 0 on::

    t % k == 0:  g = grad L(w);  w <- base(w, grad L(w + rho * g / ||g||))
    otherwise:   w <- base(w, grad L(w))

Cost: ``1 + 1/k`` forwards and backwards, of SAM's 2. State: the number of the iteration.

Source: tables of AUSAM (arXiv 2406.08001) and vSAM (arXiv 2403.08821). Neither says which of every ``k``
iterations it is; here the first, so that a run begins with one of SAM (Composer takes the last).
"""

from typing import TYPE_CHECKING

from .. import arguments, checks
from ..arguments import Options
from ..schedule import ScheduledSAM

if TYPE_CHECKING:
    from typing_extensions import Unpack


class PeriodicSAM(ScheduledSAM):
    """Takes the second pass in every ``every``-th iteration, and the plain gradient in the others.

    Args:
        model, rho, options: as for :class:`ausam_ext.SAM`.
        every: ``k``, from 1 (SAM).
    """

    _method = "PeriodicSAM"

    @arguments.explained
    def __init__(
        self, model: arguments.Model, rho: float = 0.05, *, every: int = 5, **options: "Unpack[Options]"
    ) -> None:
        super().__init__(model, rho, {"every": every}, **options)
        self.every = checks.integer("every", every, 1)

    def _decides(self) -> bool:
        return self._iteration % self.every == 0
