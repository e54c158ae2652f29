"""vSAM: SAM's second pass only while the sharpness part of the gradient changes."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import arguments, checks, ops
from .agreement import digest
from .rate import RateController, samples_of
from .reuse import ReusingSAM
from .scaling import inverse_scale
from .sharding import global_norm


class VSAM(ReusingSAM):
    """SAM whose second pass is taken at a rate that follows the PSF, which is reused in between (Alg. 1).

    With a closure (see :class:`SAM`)::

        loss, loss_perturbed = vsam.backward(closure)  # loss_perturbed is None if one pass was enough
        optimizer.step()

    Explicitly, after ``loss.backward()``::

        if vsam.decide():
            with vsam.perturbed():
                criterion(model(x), y).backward()
        else:
            vsam.reuse_()
        optimizer.step()

    Processes that are given the same arguments and gradients decide alike. If the model is wrapped for
    several processes, the first decision, also the first after :meth:`load_state_dict`, compares arguments
    and progress and raises ``ValueError`` in every process if they differ. Once per ``window`` iterations the
    norms are fetched from the device; nothing else is synchronised.

    The PSF is of ``params``; the other weights get their own gradient in steps with one pass. With a
    ``scaler``, call its ``unscale_`` after :meth:`reuse_`; the PSF is kept unscaled, and one that overflowed
    is not reused. The rate moves by a few percent in a window of 50 iterations; with ``alpha=0`` it stays as
    it is.

    Args:
        model, rho, params, maximize, groups, scaler: as for :class:`SAM`.
        alpha, window, slices, max_rate, initial_samples: as for :class:`RateController`.
        initial_rate: the rate to start from, in place of ``initial_samples = initial_rate * window``. The
            papers' runs have 0.3 to 0.43 on average, which the default does not reach within thousands of
            iterations; runs of fewer than 20,000 are best at 0.34 with ``alpha=0``.
        bounded: reuse no more of the PSF than there is of the gradient: times ``min(1, ||g|| / ||g at the
            sample||)``, with norms over all parameters that have a PSF. (Eq. 17 adds it whole, which can make
            a run diverge whose gradients vary much in size, as without normalisation layers.)
        gamma: decay of the reused PSF per iteration (Eq. 17), from 0 (vSAM-A: no reuse) to 1.
        warmup_steps: iterations at the start that all take the second pass; the papers use three epochs.
        max_reuse: iterations after a sample that reuse its PSF; later ones are plain SGD.
        norm_params: take the norms over that many parameters from the end ("the last few layers"); all if
            None.
        seed: of the decisions.

    Attributes:
        sampled: whether the last iteration took the second pass; None before the first.
        norms: ``||PSF||`` and ``||g_SGD||`` of the last sampled iteration, over ``norm_params`` parameters,
            unscaled; 0-d, on the device, not synchronised. None before.
    """

    _method = "VSAM"
    _version = 2

    @arguments.explained
    def __init__(
        self,
        model: arguments.Model,
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
        bounded: bool = False,
        initial_rate: float | None = None,
        params: Iterable[nn.Parameter] | None = None,
        maximize: bool = False,
        groups: Sequence[dict[str, Any]] = (),
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        settings = {
            "alpha": alpha,
            "gamma": gamma,
            "window": window,
            "slices": slices,
            "max_rate": max_rate,
            "initial_samples": initial_samples,
            "bounded": bounded,
            "warmup_steps": warmup_steps,
            "max_reuse": max_reuse,
            "norm_params": norm_params,
            "seed": seed,
        }
        super().__init__(model, rho, settings, params=params, maximize=maximize, groups=groups, scaler=scaler)
        if initial_rate is not None:
            initial_samples = samples_of(initial_rate, initial_samples, window, max_rate)
            self._arguments["initial_samples"] = initial_samples
        self._controller = RateController(window, slices, alpha, max_rate, initial_samples)
        self.bounded = checks.flag("bounded", bounded)
        self.gamma = checks.number("gamma", gamma, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        self.warmup_steps = checks.integer("warmup_steps", warmup_steps, 0)
        self.max_reuse = checks.integer("max_reuse", max_reuse, 0)
        self.norm_params = None if norm_params is None else checks.integer("norm_params", norm_params, 1)
        self._step = 0  # iterations of this window that have ended
        self._taken = 0  # and how many of them took the second pass
        self._age = 0  # iterations since the PSF was taken, i - i*
        # gamma^(i - i*), or 0 for a PSF that is not finite; on the device, where a captured graph finds it.
        # Always float32: a checkpoint that is loaded in place keeps the dtype of where it goes.
        self._decay = torch.zeros((), dtype=torch.float32, device="cpu")
        self.norms: tuple[Tensor, Tensor] | None = None
        # ||g_SGD|| of the last sample over all that have a PSF, unscaled; 0 if it is not known.
        self._limit = torch.zeros((), dtype=torch.float64, device="cpu")
        self._generator = torch.Generator("cpu").manual_seed(checks.integer("seed", seed, 0))

    @property
    def controller(self) -> RateController:
        """What sets the rate; up to date with the last iteration."""
        self._count()
        return self._controller

    def _decides(self) -> bool:
        """Within a window exactly ``int(s)`` iterations take the second pass: by chance at the rate ``s / N``
        while some are left, and by necessity once no more iterations are left than samples."""
        if self._iteration < self.warmup_steps:
            return True
        missing = int(self._controller.s) - self._taken
        left = self._controller.window - self._step
        drawn = torch.rand((), generator=self._generator, dtype=torch.float32, device="cpu").item()
        return missing > 0 and (drawn < self._controller.rate or left <= missing)

    def _decided_by(self) -> dict[str, Any]:
        return {
            "number of samples": self._controller.s,
            "generator": digest(self._generator),
        }

    def _counted(self) -> None:
        if self.sampled and self.norms is not None:
            self._controller.observe(*self.norms)
        self._age = 0 if self.sampled else self._age + 1
        if self._iteration >= self.warmup_steps:
            self._step += 1
            self._taken += bool(self.sampled)
            if self._step == self._controller.window:
                self._controller.update()
                self._step = self._taken = 0

    def _make(self, psf: list[Tensor], grads: list[Tensor]) -> None:
        """``g - g_SGD`` becomes the PSF; notes the norms."""
        n = len(psf) if self.norm_params is None else min(self.norm_params, len(psf))
        old, new = self._local(psf), self._local(grads)
        if self._sharded:
            sgd_norm = global_norm(psf[-n:])
            limit = global_norm(psf) if self.bounded else sgd_norm
            ops.psf_capture_(old, new)
            psf_norm, whole = global_norm(psf[-n:]), global_norm(psf)
        else:
            # In two calls for the norms over all, at no cost of memory traffic.
            psf_norm, sgd_norm = ops.psf_capture_(old[-n:], new[-n:])
            whole, limit = psf_norm, sgd_norm
            if len(old) > n:
                others = [norm.to(psf_norm) for norm in ops.psf_capture_(old[:-n], new[:-n])]
                whole = whole + others[0]
                if self.bounded:
                    limit = limit.hypot(others[1])
        if self.scaler is not None:
            unscale = inverse_scale(self.scaler, psf_norm)
            psf_norm, sgd_norm, limit = psf_norm * unscale, sgd_norm * unscale, limit * unscale
            for device in dict.fromkeys(t.device for t in old):
                torch._foreach_mul_([t for t in old if t.device == device], unscale.to(device))
        self._decay = whole.isfinite().float()
        self.norms = psf_norm, sgd_norm
        if self.bounded:
            self._limit = limit.double()

    def _reuses(self) -> bool:
        # In a graph it is replayed() that ends the reuse, whatever the age is at the capture.
        return self.gamma > 0 and (self._capturing() or self._age < self.max_reuse)

    def _add(self, grads: list[Tensor], psf: list[Tensor]) -> None:
        """The PSF decayed by ``gamma^(i - i*)`` (Eq. 17)."""
        self._decay.mul_(self.gamma)
        scale = self._decay if self.scaler is None else self.scaler.scale(self._decay)
        parts = self._local(grads)
        scale, limit = scale.to(parts[0].device), None
        if self.bounded:
            limit = self._limit if self.scaler is None else self.scaler.scale(self._limit)
            limit = limit.to(parts[0].device)
            if self._sharded:
                share = global_norm(grads) / limit
                scale, limit = scale * share.where(share < 1, 1).to(scale), None
        ops.psf_reuse_(parts, self._local(psf), scale, limit=limit)

    def replayed(self) -> None:
        super().replayed()
        if self._age >= self.max_reuse:
            self._decay.zero_()

    def _progress(self) -> list[int]:
        return [self._iteration, self._step, self._taken, self._age]

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "decay": self._decay,
            "limit": self._limit,
            "controller": self._controller.state_dict(),
            "generator": self._generator.get_state(),
        }

    def _load_rest(self, state: dict[str, Any], device: torch.device) -> None:
        decay, limit = state["decay"], state.get("limit", torch.zeros(()))  # older states have none
        _, step, taken, age = state["progress"]
        generator = torch.Generator("cpu")
        generator.set_state(state["generator"].cpu())
        self._controller.load_state_dict(state["controller"])  # the last that may refuse, itself unchanged
        self._step, self._taken, self._age, self._generator = step, taken, age, generator
        self._decay = decay.to(device, torch.float32, copy=True)
        self._limit = limit.to(device, torch.float64, copy=True)
