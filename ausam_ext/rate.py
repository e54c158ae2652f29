"""vSAM's control of how often SAM's second pass is taken."""

import math
from collections import deque
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from . import checks, ops

_VERSION = 1


class RateController:
    """How many of the next ``window`` iterations take SAM's second pass (vSAM Eq. 8 to 15).

    From the norms of the last ``N = window`` sampled iterations: ``v_i``, the sliced variance of ``||PSF||``
    (Eq. 8), ``r_i = ||PSF|| / ||g_SGD||`` (Eq. 11), their relative changes (Eq. 9, 12), each averaged (Eq.
    10, 13) and clipped to [-1, 1], and ``s <- s * (1 + alpha * c_var + alpha * c_norm)`` (Eq. 14) clipped to
    [1, max_rate * N]. A change from zero, or one that is not finite, counts as 0.

    Args:
        window: ``N``, iterations between updates and observations that an update looks at.
        slices: ``M``, slices of the variance; ``window >= 2 * slices``.
        alpha: how strongly the number of samples follows the changes.
        max_rate: upper bound of the sampling rate, above 0 and at most 1.
        initial_samples: ``s_1``, from 1 to ``max_rate * window``.

    Attributes:
        s: number of samples for the next window, a float; its whole part is taken.
    """

    def __init__(
        self,
        window: int = 50,
        slices: int = 5,
        alpha: float = 0.1,
        max_rate: float = 0.8,
        initial_samples: float = 1,
    ) -> None:
        self.slices = checks.integer("slices", slices, 1)
        self.window = checks.integer("window", window, 2 * self.slices)
        self.alpha = checks.number("alpha", alpha, "a finite number not below 0", lambda v: v >= 0)
        top = self.window * checks.number(
            "max_rate", max_rate, "a number above 0 and at most 1", lambda v: 0 < v <= 1
        )
        if top < 1:
            raise ValueError(f"max_rate: expected max_rate * window of at least 1, got {max_rate} * {window}")
        self.max_samples = top
        self.s = checks.number(
            "initial_samples", initial_samples, f"a number from 1 to {top:g}", lambda v: 1 <= v <= top
        )
        # (||PSF||, ||g_SGD||): the last N, and the N - 1 before them that the first of those looks back on.
        self._observed: deque[tuple[float, float] | Tensor] = deque(maxlen=2 * self.window - 1)

    def __repr__(self) -> str:
        return (
            f"RateController(window={self.window}, slices={self.slices}, alpha={self.alpha:g}, "
            f"max_rate={self.max_samples / self.window:g}, s={self.s:g})"
        )

    @property
    def rate(self) -> float:
        """``p = s / N`` (Eq. 15)."""
        return self.s / self.window

    def observe(self, psf_norm: float | Tensor, sgd_norm: float | Tensor) -> None:
        """Records the norms of a sampled iteration; numbers or 0-d tensors, which are not synchronised."""
        if isinstance(psf_norm, Tensor) and isinstance(sgd_norm, Tensor):
            checks.tensor("psf_norm", psf_norm, checks.FLOATING, dim=0)
            checks.tensor("sgd_norm", sgd_norm, checks.FLOATING, dim=0)
            self._observed.append(torch.stack((psf_norm.detach(), sgd_norm.detach())))
            return
        for name, value in (("psf_norm", psf_norm), ("sgd_norm", sgd_norm)):
            if not isinstance(value, (int, float, Real, Tensor)):
                raise TypeError(f"{name}: expected a number or a 0-d tensor, got {value!r}")
        self._observed.append((float(psf_norm), float(sgd_norm)))

    def update(self) -> float:
        """Closes a window: computes ``s`` for the next one and returns it (Eq. 14).

        With fewer than ``window`` observations it uses those there are; fewer than ``2 * slices`` leave
        ``s``.
        """
        observed = self._values()
        n = len(observed)
        if n < 2 * self.slices:
            return self.s
        norms = torch.tensor([psf for psf, _ in observed], dtype=torch.float64, device="cpu")
        recent = range(max(0, n - self.window), n)
        variances = [
            ops.sliced_variance(norms[max(0, i + 1 - self.window) : i + 1], self.slices).item()
            for i in recent
            if i + 1 >= 2 * self.slices
        ]
        ratios = [observed[i][0] / observed[i][1] if observed[i][1] else math.nan for i in recent]
        change = _mean_change(variances) + _mean_change(ratios)
        self.s = min(max(self.s * (1 + self.alpha * change), 1.0), self.max_samples)
        return self.s

    def _values(self) -> list[tuple[float, float]]:
        """The observations as numbers: one transfer for all that are tensors."""
        tensors = [x for x in self._observed if isinstance(x, Tensor)]
        if tensors:
            values = iter(torch.stack(tensors).tolist())
            numbers = [tuple(next(values)) if isinstance(x, Tensor) else x for x in self._observed]
            self._observed = deque(numbers, maxlen=self._observed.maxlen)
        return [x for x in self._observed if not isinstance(x, Tensor)]

    def state_dict(self) -> dict[str, Any]:
        """``s`` and the observations, ``[2 * window - 1, 2]``, of which the first ``count`` exist.

        (Synchronises. Always of the same shape, as ``torch.distributed.checkpoint`` needs it.)
        """
        values = self._values()
        observed = torch.zeros(2 * self.window - 1, 2, dtype=torch.float64, device="cpu")
        observed[: len(values)] = torch.tensor(values, dtype=torch.float64, device="cpu").view(-1, 2)
        return {"version": _VERSION, "s": self.s, "observed": observed, "count": len(values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            KeyError: something is missing.
            ValueError: the state is of another version or ``window``. Nothing is changed.
        """
        checks.version(state, _VERSION)
        s, observed, count = state["s"], state["observed"], state["count"]
        if len(observed) != 2 * self.window - 1:
            raise ValueError(f"window: expected {(len(observed) + 1) // 2}, of the state, got {self.window}")
        pairs = [(psf, sgd) for psf, sgd in observed[:count].tolist()]
        self.s, self._observed = float(s), deque(pairs, maxlen=self._observed.maxlen)


def _mean_change(values: list[float]) -> float:
    """Mean of ``(x_i - x_(i-1)) / x_(i-1)``, clipped to [-1, 1]."""
    if len(values) < 2:
        return 0.0
    changes = [(b - a) / a if a else 0.0 for a, b in pairwise(values)]
    mean = sum(c for c in changes if math.isfinite(c)) / len(changes)
    return min(max(mean, -1.0), 1.0)


def samples_of(rate: float, samples: float, window: int, max_rate: float) -> float:
    """``initial_samples`` for an ``initial_rate``, beside which ``samples`` must be what it is by default."""
    if samples != 1:
        raise ValueError(f"initial_rate: expected None beside initial_samples={samples}, got {rate}")
    low = 1 / window
    accepted = f"a number from 1 / window = {low:g} to max_rate = {max_rate:g}"
    checks.number("initial_rate", rate, accepted, lambda v: low <= v <= max_rate)
    return round(float(rate) * window, 9)  # so that 0.58 * 50 is 29
