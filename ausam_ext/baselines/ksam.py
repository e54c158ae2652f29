"""K-SAM (Ni et al. 2022): both passes of SAM on the samples with the largest losses.

On a batch of ``K`` samples with losses ``l_i``, in this order::

    l_i(w)                                of all samples, without gradient
    C: the k samples with the largest     k = max(min(2, K), floor(k_ratio K))
    e = rho g / (||g|| + 1e-12)           g = grad L_C(w)
    .grad = grad L_C(w + e)

Cost: three forwards, of K, k and k samples, and two backwards of k; SAM has two of each of K. With k_ratio =
1/2 that is two thirds of SAM, with 1/3 what SGD costs, if a backward costs two forwards.

There is no official code to compare with, and the paper leaves open which pass moves running statistics: here
it is the one on the whole batch, as only that represents the data.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from .. import arguments
from ..arguments import Options
from .selecting import Losses, SelectingSAM, forward, look, share

if TYPE_CHECKING:
    from typing_extensions import Unpack


class KSAM(SelectingSAM):
    """SAM on the samples of each batch that have the largest losses; see :class:`SelectingSAM` for its form.

    With ``maximize`` it chooses those with the smallest losses. Running statistics are afterwards what the
    pass on the whole batch made them, and so is all else that it changes in the modules.

    Args:
        model, rho, options: as for :class:`SAM`.
        k_ratio: share of the samples that both passes run on, above 0 and at most 1; of a batch of K
            ``max(min(2, K), floor(k_ratio * K + 1e-6))``. With 1 the gradient is SAM's.
    """

    _method, _shares = "KSAM", ("k_ratio",)

    @arguments.explained
    def __init__(
        self,
        model: arguments.Model,
        rho: float = 0.05,
        *,
        k_ratio: float = 0.5,
        **options: "Unpack[Options]",
    ) -> None:
        super().__init__(model, rho, **options)
        self.k_ratio = share("k_ratio", k_ratio)

    def _ascent(self, losses: Losses) -> tuple[Tensor, Tensor]:
        loss = look(losses)
        positions = self._largest(loss, self.k_ratio)
        with self._state.kept():
            chosen = forward(losses, positions)
            self._clear()
            self._differentiate(chosen)
        return loss, positions
