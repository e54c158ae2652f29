"""ESAM (Du et al. 2022, arXiv 2110.03141): the ascent on some weights, the descent on some samples.

On a batch of ``K`` samples with losses ``l_i``, in this order::

    l_i(w)                                of all samples
    e = rho g / (||g|| + 1e-12) / beta    g = grad L(w) of the drawn parameter tensors, 0 elsewhere
    S_i = l_i(w + e) - l_i(w)             of all samples, without gradient
    C: the n samples with the largest     n = max(min(2, K), floor(gamma K))
    .grad = grad L_C(w + e)               of all tensors

Each tensor is drawn with probability beta, anew for every step. In the first step all are, and e is divided
by beta too. Cost: three forwards, of K, K and n samples, and two backwards, of n, and of K without
the weight gradients of what is not drawn, where SAM has two of each of K: five sixths of SAM for beta = gamma
= 1/2, if a backward costs two forwards.

The official code (dydjw9/Efficient_SAM) keeps n - 1 samples (``>`` the n-th), adds 1e-7 to the norm, restores
w by subtracting e, moves running statistics in all forwards, and sets ``requires_grad=False`` for what is not
drawn. Here autograd is asked only for some gradients: as fast, and nothing is compiled anew at each draw.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import arguments, checks
from ..agreement import digest, refuse_differences
from ..arguments import Options
from ..perturbation import Groups
from ..reference import accumulation_dtype
from .selecting import Losses, SelectingSAM, forward, look, share

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ESAM(SelectingSAM):
    """SAM that perturbs some weights, and descends on the samples whose losses rise most by that.

    For the form of a step see :class:`SelectingSAM`. Processes that train one model draw alike, which is
    compared; they compute all gradients, so that the draw saves them no time. Activation checkpoints need
    ``use_reentrant=False``. With ``maximize``, C has the samples whose losses fall most.

    Args:
        model, rho, options: as for :class:`SAM`.
        beta: probability of each tensor to be perturbed, above 0 and at most 1. If none is, ``e`` is 0.
        gamma: share of the samples in C, above 0 and at most 1. With ``beta = gamma = 1`` this is SAM.
        seed: of the draws.
    """

    _method, _shares = "ESAM", ("beta", "gamma")

    @arguments.explained
    def __init__(
        self,
        model: arguments.Model,
        rho: float = 0.05,
        *,
        beta: float = 0.5,
        gamma: float = 0.5,
        seed: int = 0,
        **options: "Unpack[Options]",
    ) -> None:
        super().__init__(model, rho, **options)
        self.beta, self.gamma = share("beta", beta), share("gamma", gamma)
        self._seed = checks.integer("seed", seed, 0)
        self._generator = torch.Generator("cpu").manual_seed(self._seed)
        self._drawn = [True] * len(self._perturbed)  # for the next step
        self._agreed = False

    def _ascent(self, losses: Losses) -> tuple[Tensor, None]:
        if not self._agreed:  # else weights could be perturbed in one process and not in another
            mine = {"beta": self.beta, "seed": self._seed, "params": len(self._perturbed)}
            state = {"drawn": self._drawn, "generator": digest(self._generator)}
            refuse_differences(mine, state, self._ddps, self._params)
            self._agreed = True
        loss = forward(losses)
        result = loss.detach().clone()  # the next passes may write to the same memory
        self._clear()
        which = [(p, d) for p, d in zip(self._perturbed, self._drawn, strict=True) if p.requires_grad]
        drawn, others = [p for p, d in which if d], [p for p, d in which if not d]
        if not others or self._ddps or self._sharded:  # the latter wait for the gradients of all
            self._differentiate(loss)
        elif drawn:
            self._differentiate(loss, inputs=drawn)
        for p in others:
            if p.grad is not None:
                p.grad.zero_()
            elif p is others[0]:  # there has to be one, even if none is drawn
                p.grad = torch.zeros_like(p)
        return result, None

    def _radii(self) -> tuple[float, Groups]:
        return self.rho / self.beta, [{**group, "rho": group["rho"] / self.beta} for group in self.groups]

    def _choose(self, losses: Losses, loss: Tensor) -> Tensor:
        after, wide = look(losses), accumulation_dtype([loss])
        checks.same_shape("losses(None) at w + e", after, "losses(None) at w", loss)
        return self._largest(after.to(wide) - loss.to(wide), self.gamma)

    def _leave(self) -> None:
        super()._leave()
        noise = torch.rand(len(self._drawn), generator=self._generator, dtype=torch.float64, device="cpu")
        self._drawn = (noise < self.beta).tolist()

    def state_dict(self) -> dict[str, Any]:
        """Which tensors are drawn for the next step, and the generator of the draws after that."""
        drawn = torch.tensor(self._drawn, dtype=torch.bool, device="cpu")
        return {**super().state_dict(), "drawn": drawn, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`. If this raises, as :meth:`SAM.load_state_dict`, nothing is changed."""
        super().load_state_dict(state)
        drawn, n, generator = state["drawn"].tolist(), len(self._perturbed), torch.Generator("cpu")
        if len(drawn) != n:
            raise ValueError(f"drawn: expected {n} parameters, got {len(drawn)}")
        generator.set_state(state["generator"].cpu())
        self._drawn, self._generator, self._agreed = drawn, generator, False
