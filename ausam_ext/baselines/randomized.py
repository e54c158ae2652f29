"""RST and G-RST: SAM by the toss of a coin.

In iteration ``t``, with ``X_t ~ Bernoulli(p(t))``::

    X_t = 1:  g = grad L(w);  g_s = grad L(w + rho * g / ||g||);  w <- base(w, (1 - a) * g + a * g_s)
    X_t = 0:  w <- base(w, grad L(w))

``a = 1`` is RST. For G-RST, ``p * a = 1`` has the same direction as SAM in expectation, as that is
``g + p * a * (g_s - g)``.

Cost: ``1 + mean p`` forwards and backwards, of SAM's 2. State: that of the generator; G-RST keeps one copy of
the gradient within a sampled iteration.

Source: Zhao, Zhang and Hu, "Randomized Sharpness-Aware Training for Boosting Computational Efficiency in Deep
Learning" (arXiv 2203.09962), whose schedules of ``p`` are functions here. The mix is of the same authors'
code for penalties on the gradient's norm; its option to mix ``g / ||g||`` instead of ``g`` is left out.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import arguments, checks
from ..agreement import digest
from ..arguments import Options
from ..schedule import ScheduledSAM

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _rate(value: float) -> float:
    return checks.number("rate", value, "a number from 0 to 1, or a function", lambda v: 0 <= v <= 1)


class RandomizedSAM(ScheduledSAM):
    """Takes the second pass at random.

    Args:
        model, rho, options: as for :class:`ausam_ext.SAM`.
        rate: ``p``, from 0 (plain gradients) to 1, or a function of the number of the iteration, from 0 on.
        weight: ``a``, any number, also above 1. All trained weights get the mix, in ``params`` or not.
        seed: of the draws, which are the same in every process.
    """

    _method = "RandomizedSAM"

    @arguments.explained
    def __init__(
        self,
        model: arguments.Model,
        rho: float = 0.05,
        *,
        rate: float | Callable[[int], float] = 0.5,
        weight: float = 1.0,
        seed: int = 0,
        **options: "Unpack[Options]",
    ) -> None:
        self._keeps_difference = weight != 1  # a clip between the passes would spoil the mix
        shown = "a function" if callable(rate) else rate
        super().__init__(model, rho, {"rate": shown, "weight": weight, "seed": seed}, **options)
        self.rate = rate if callable(rate) else _rate(rate)
        self.weight = checks.number("weight", weight, "a number", lambda v: True)
        self._generator = torch.Generator("cpu").manual_seed(checks.integer("seed", seed, 0))
        self._first: list[tuple[nn.Parameter, Tensor]] = []  # gradients of the first pass, inside perturbed()

    def _decides(self) -> bool:
        rate = _rate(self.rate(self._iteration)) if callable(self.rate) else self.rate
        return torch.rand((), generator=self._generator, dtype=torch.float64, device="cpu").item() < rate

    def _decided_by(self) -> dict[str, Any]:
        return {"generator": digest(self._generator)}

    def _clear(self) -> list[tuple[Tensor, int]]:
        if self.weight != 1:
            trained = [p for p in self._params if p.requires_grad]
            self._first = [(p, p.grad.clone()) for p in trained if p.grad is not None]
        return super()._clear()

    @torch.no_grad()
    def _capture(self) -> None:
        first, self._first = self._first, []
        both = [(p.grad, g) for p, g in first if p.grad is not None]
        if both:
            now, then = (self._local(grads) for grads in zip(*both, strict=True))
            torch._foreach_lerp_(now, then, 1 - self.weight)
            self._leave()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "generator": self._generator.get_state()}

    def _load(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"].cpu())
