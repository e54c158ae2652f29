"""vSAM: SAM's second pass only while the sharpness part of the gradient changes."""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from . import checks, ops
from .sam import SAM, Closure, run

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
        self.window = checks.integer("window", window, 2 * slices)
        self.alpha = checks.number("alpha", alpha, "a finite number not below 0", lambda v: v >= 0)
        top = window * checks.number(
            "max_rate", max_rate, "a number above 0 and at most 1", lambda v: 0 < v <= 1
        )
        if top < 1:
            raise ValueError(f"max_rate: expected max_rate * window of at least 1, got {max_rate} * {window}")
        self.max_samples = top
        self.s = checks.number(
            "initial_samples", initial_samples, f"a number from 1 to {top:g}", lambda v: 1 <= v <= top
        )
        # (||PSF||, ||g_SGD||): the last N, and the N - 1 before them that the first of those looks back on.
        self._observed: deque[tuple[float, float] | Tensor] = deque(maxlen=2 * window - 1)

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
            if not isinstance(value, (int, float, Tensor)):
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
        norms = torch.tensor([psf for psf, _ in observed], dtype=torch.float64)
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
        return list(self._observed)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """``s`` and the observations (synchronises)."""
        return {"s": self.s, "observed": [list(pair) for pair in self._values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.s = float(state["s"])
        self._observed = deque(((psf, sgd) for psf, sgd in state["observed"]), maxlen=self._observed.maxlen)


def _mean_change(values: list[float]) -> float:
    """Mean of ``(x_i - x_(i-1)) / x_(i-1)``, clipped to [-1, 1]."""
    if len(values) < 2:
        return 0.0
    changes = [(b - a) / a if a else 0.0 for a, b in pairwise(values)]
    mean = sum(c for c in changes if math.isfinite(c)) / len(changes)
    return min(max(mean, -1.0), 1.0)


class VSAM(SAM):
    """SAM whose second pass is taken at a rate that follows the PSF, which is reused in between (Alg. 1).

    With a closure (see :class:`SAM`)::

        loss, loss_perturbed = vsam.backward(closure)  # loss_perturbed is None where one pass was enough
        optimizer.step()

    Explicitly, after ``loss.backward()``::

        if vsam.decide():
            with vsam.perturbed():
                criterion(model(x), y).backward()
        else:
            vsam.reuse_()
        optimizer.step()

    Every process with the same ``seed`` decides alike. Once per ``window`` iterations the norms are fetched
    from the device; nothing else is synchronised.

    Args:
        model, rho: as for :class:`SAM`.
        alpha, window, slices, max_rate, initial_samples: as for :class:`RateController`.
        gamma: decay of the reused PSF per iteration (Eq. 17), from 0 (vSAM-A: no reuse) to 1.
        warmup_steps: iterations at the start that all take the second pass; the papers use three epochs.
        max_reuse: iterations after a sample that reuse its PSF; later ones are plain SGD.
        norm_params: take the norms over that many parameters from the end ("the last few layers"); all if
            None.
        seed: of the decisions.

    Attributes:
        sampled: whether the last iteration took the second pass; None before the first.
        controller: the :class:`RateController`.
    """

    def __init__(
        self,
        model: nn.Module,
        rho: float = 0.05,
        *,
        alpha: float = 0.1,
        gamma: float = 0.9,
        window: int = 50,
        slices: int = 5,
        max_rate: float = 0.8,
        initial_samples: float = 1,
        warmup_steps: int,
        max_reuse: int = 6,
        norm_params: int | None = 10,
        seed: int = 0,
    ) -> None:
        super().__init__(model, rho)
        self.controller = RateController(window, slices, alpha, max_rate, initial_samples)
        self.gamma = checks.number("gamma", gamma, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        self.warmup_steps = checks.integer("warmup_steps", warmup_steps, 0)
        self.max_reuse = checks.integer("max_reuse", max_reuse, 0)
        self.norm_params = None if norm_params is None else checks.integer("norm_params", norm_params, 1)
        self.sampled: bool | None = None
        self._decision: bool | None = None  # of the iteration that has not ended yet
        self._iteration = 0
        self._step = 0  # iterations of this window that have ended
        self._taken = 0  # and how many of them took the second pass
        self._age = 0  # iterations since the PSF was taken, i - i*
        self._psf: list[Tensor | None] = [None] * len(self._params)
        self._generator = torch.Generator().manual_seed(checks.integer("seed", seed, 0))

    def decide(self) -> bool:
        """Whether this iteration takes the second pass: the same answer until the iteration ends.

        Within a window exactly ``int(s)`` iterations do: by chance at the rate ``s / N`` while some are left,
        and by necessity once no more iterations are left than samples.
        """
        if self._decision is None:
            self._decision = self._iteration < self.warmup_steps or self._draw()
        return self._decision

    def _draw(self) -> bool:
        missing = int(self.controller.s) - self._taken
        left = self.controller.window - self._step
        by_chance = torch.rand((), generator=self._generator).item() < self.controller.rate
        return missing > 0 and (by_chance or left <= missing)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """:meth:`SAM.perturbed`; leaving it captures the PSF and ends the iteration as a sampled one.

        After an exception inside, the iteration has not ended, and there is no PSF to reuse until the next
        sample.
        """
        # The gradients of the first pass become the PSF in their own memory; a view's memory is another's.
        sgd = [g.clone() if g is not None and g._is_view() else g for g in (p.grad for p in self._params)]
        with super().perturbed():
            self._psf = [None] * len(self._params)  # frees the old one before the second pass
            yield
        captured = {
            i: (g, p.grad)
            for i, (g, p) in enumerate(zip(sgd, self._params, strict=True))
            if g is not None and p.grad is not None
        }
        if captured:
            psf = [g for g, _ in captured.values()]
            last = None if self.norm_params is None else min(self.norm_params, len(psf))
            norms = ops.psf_capture_(psf, [new for _, new in captured.values()], norm_last=last)
            self.controller.observe(*norms)
            self._psf = [captured[i][0] if i in captured else None for i in range(len(self._params))]
        self._age = 0
        self._end(sampled=True)

    def reuse_(self) -> None:
        """Adds the decayed PSF, if there is one, to ``.grad`` (Eq. 17); ends the iteration as not sampled."""
        if all(p.grad is None for p in self._params):
            raise RuntimeError("reuse_(): no parameter has a gradient; call backward() on the loss first")
        self._age += 1
        if self._age <= self.max_reuse and self.gamma > 0:
            pairs = [
                (p.grad, psf)
                for p, psf in zip(self._params, self._psf, strict=True)
                if p.grad is not None and psf is not None
            ]
            ops.psf_reuse_([g for g, _ in pairs], [psf for _, psf in pairs], self.gamma**self._age)
        self._end(sampled=False)

    def backward(self, closure: Closure) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """Runs one pass or two and leaves the vSAM gradient in ``.grad``.

        Args:
            closure: clears the gradients, runs forward and backward, returns its loss (of any shape).

        Returns:
            The losses at ``w`` and at ``w + epsilon``, detached; None for the second where one pass was
            taken.
        """
        loss = run(closure)
        if not self.decide():
            self.reuse_()
            return loss, None
        with self.perturbed():
            loss_perturbed = run(closure)
        return loss, loss_perturbed

    def _end(self, sampled: bool) -> None:
        self.sampled, self._decision = sampled, None
        if self._iteration >= self.warmup_steps:
            self._step += 1
            self._taken += sampled
            if self._step == self.controller.window:
                self.controller.update()
                self._step = self._taken = 0
        self._iteration += 1

    def state_dict(self) -> dict[str, Any]:
        """All that the next iterations depend on, as numbers and references to the tensors, not copies."""
        return {
            "version": _VERSION,
            "progress": [self._iteration, self._step, self._taken, self._age],
            "sampled": self.sampled,
            "decision": self._decision,
            "psf": list(self._psf),
            "controller": self.controller.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, saved on any device.

        Raises:
            KeyError: something is missing.
            ValueError: the state is of another version or model. Nothing is changed.
        """
        if state["version"] != _VERSION:
            raise ValueError(f"version: expected {_VERSION}, got {state['version']}")
        psf = state["psf"]
        if len(psf) != len(self._params):
            raise ValueError(f"psf: expected {len(self._params)} parameters, got {len(psf)}")
        for i, (saved, p) in enumerate(zip(psf, self._params, strict=True)):
            if saved is not None:
                checks.same_shape(f"psf[{i}]", saved, "the parameter", p)
        progress, controller, generator = state["progress"], state["controller"], state["generator"]
        self.sampled, self._decision = state["sampled"], state["decision"]
        self.controller.load_state_dict(controller)
        self._generator.set_state(generator.cpu())
        self._iteration, self._step, self._taken, self._age = progress
        self._psf = [
            None if saved is None else saved.to(p, copy=True)
            for saved, p in zip(psf, self._params, strict=True)
        ]
