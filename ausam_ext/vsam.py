"""vSAM: SAM's second pass only while the sharpness part of the gradient changes."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from . import arguments, checks, guards, ops
from .copies import Copies
from .rate import RateController, samples_of
from .sam import SAM, Closure
from .sharding import everyones, global_norm, groups_of, is_sharded

_VERSION = 2


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

    Processes that are given the same arguments and gradients decide alike. Where the model is wrapped for
    several processes, the first decision, also the first after :meth:`load_state_dict`, compares arguments
    and progress and raises ``ValueError`` in every process if they differ. Once per ``window`` iterations the
    norms are fetched from the device; nothing else is synchronised.

    Args:
        model, rho, params, maximize, groups, scaler: as for :class:`SAM`. The PSF is of ``params``; the other
            weights get their own gradient in steps with one pass. With a ``scaler``, call its ``unscale_``
            after :meth:`reuse_`; the PSF is kept unscaled, and one that overflowed is not reused.
        alpha, window, slices, max_rate, initial_samples: as for :class:`RateController`. The rate moves by a
            few percent in a window of 50 iterations; with ``alpha=0`` it stays as it is.
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
    """

    _method = "VSAM"
    _keeps_difference = True

    @arguments.explained
    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module],
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
        super().__init__(model, rho, params=params, maximize=maximize, groups=groups, scaler=scaler)
        if initial_rate is not None:
            initial_samples = samples_of(initial_rate, initial_samples, window, max_rate)
        self._controller = RateController(window, slices, alpha, max_rate, initial_samples)
        self.bounded = checks.flag("bounded", bounded)
        self.gamma = checks.number("gamma", gamma, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        self.warmup_steps = checks.integer("warmup_steps", warmup_steps, 0)
        self.max_reuse = checks.integer("max_reuse", max_reuse, 0)
        self.norm_params = None if norm_params is None else checks.integer("norm_params", norm_params, 1)
        self.sampled: bool | None = None
        self._decision: bool | None = None  # of the iteration that has not ended yet
        self._ended = False  # it has, but is not counted yet
        self._iteration = 0
        self._step = 0  # iterations of this window that have ended
        self._taken = 0  # and how many of them took the second pass
        self._age = 0  # iterations since the PSF was taken, i - i*
        self._psf: list[Tensor | None] = [None] * len(self._perturbed)
        self._first: list[
            tuple[int, Tensor]
        ] = []  # inside perturbed(): gradients of the first pass, by place
        self._psf_memory = Copies()  # its own: the loop may keep or reuse that of the gradients
        # gamma^(i - i*), or 0 for a PSF that is not finite; on the device, where a captured graph finds it.
        # Always float32: a checkpoint that is loaded in place keeps the dtype of where it goes.
        self._decay = torch.zeros((), dtype=torch.float32, device="cpu")
        self._norms: tuple[Tensor, Tensor] | None = None  # ||PSF||, ||g_SGD|| of the last sample
        # ||g_SGD|| of the last sample over all that have a PSF, unscaled; 0 if it is not known.
        self._limit = torch.zeros((), dtype=torch.float64, device="cpu")
        self._generator = torch.Generator("cpu").manual_seed(checks.integer("seed", seed, 0))
        self._arguments = {
            "rho": self.rho,
            "alpha": alpha,
            "gamma": gamma,
            "window": window,
            "slices": slices,
            "max_rate": max_rate,
            "initial_samples": initial_samples,
            "bounded": self.bounded,
            "warmup_steps": warmup_steps,
            "max_reuse": max_reuse,
            "norm_params": norm_params,
            "seed": seed,
            "groups": [group["rho"] for group in self.groups],
            "scaler": self.scaler is not None,
            "maximize": self.maximize,
            "params": len(self._perturbed),
        }
        self._agreed = False

    @property
    def controller(self) -> RateController:
        """What sets the rate; up to date with the last iteration."""
        self._count()
        return self._controller

    def decide(self) -> bool:
        """Whether this iteration takes the second pass: the same answer until the iteration ends.

        Within a window exactly ``int(s)`` iterations do: by chance at the rate ``s / N`` while some are left,
        and by necessity once no more iterations are left than samples.
        """
        self._count()
        if not self._agreed:
            self._agree()
        if self._decision is None:
            self._decision = self._iteration < self.warmup_steps or self._draw()
        return self._decision

    def _draw(self) -> bool:
        missing = int(self._controller.s) - self._taken
        left = self._controller.window - self._step
        drawn = torch.rand((), generator=self._generator, dtype=torch.float32, device="cpu").item()
        return missing > 0 and (drawn < self._controller.rate or left <= missing)

    def _agree(self) -> None:
        """Compares what the decisions depend on: processes that decide differently would add up gradients of
        different passes."""
        mine = {
            **self._arguments,
            "maximize": self.maximize,
            "progress": [self._iteration, self._step, self._taken, self._age],
            "decision": self._decision,
            "number of samples": self._controller.s,
            "generator": blake2b(bytes(self._generator.get_state().tolist())).hexdigest(),
        }
        groups = list(dict.fromkeys(ddp.process_group for ddp in self._ddps)) or groups_of(self._params)
        for name, values in everyones(mine, groups).items():
            if any(value != mine[name] for value in values):
                kind = "argument" if name in self._arguments else "loaded state"
                raise ValueError(f"{name}: expected the same {kind} in every process, got {values} by rank")
        self._agreed = True

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """:meth:`SAM.perturbed`; leaving it captures the PSF and ends the iteration as a sampled one.

        After an exception inside, the iteration has not ended, and there is no PSF to reuse until the next
        sample.
        """
        self._count()
        with super().perturbed():
            yield
        first, self._first = self._first, []
        second = [self._perturbed[i].grad for i, _ in first]
        both = [(i, sgd, g) for (i, sgd), g in zip(first, second, strict=True) if g is not None]
        if both:
            self._capture([sgd for _, sgd, _ in both], [g for _, _, g in both])
            for i, psf, _ in both:
                self._psf[i] = psf
        self._end(sampled=True)

    def _clear(self) -> list[tuple[Tensor, int]]:
        """Keeps the gradients of the first pass, which become the PSF."""
        places = [i for i, p in enumerate(self._perturbed) if p.requires_grad and p.grad is not None]
        grads: list[Tensor] = [self._perturbed[i].grad for i in places]  # type: ignore[misc]
        kept = self._psf_memory.of(places, grads)
        self._psf = [None] * len(self._perturbed)
        ops.restore_(self._local(kept), self._local(grads))
        self._first = list(zip(places, kept, strict=True))
        return super()._clear()

    @torch.no_grad()
    def _capture(self, psf: list[Tensor], grads: list[Tensor]) -> None:
        """``psf``, the gradients of the first pass, become the PSF; notes the norms."""
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
            unscale = self.scaler.scale(torch.ones_like(psf_norm)).reciprocal()
            psf_norm, sgd_norm, limit = psf_norm * unscale, sgd_norm * unscale, limit * unscale
            for device in dict.fromkeys(t.device for t in old):
                torch._foreach_mul_([t for t in old if t.device == device], unscale.to(device))
        self._decay = whole.isfinite().float()
        self._norms = psf_norm, sgd_norm
        if self.bounded:
            self._limit = limit.double()

    def reuse_(self) -> None:
        """Adds the decayed PSF, if there is one, to ``.grad`` (Eq. 17); ends the iteration as not sampled."""
        if all(p.grad is None for p in self._params if p.requires_grad):
            raise RuntimeError("reuse_(): no parameter has a gradient; call backward() on the loss first")
        self._check("reuse_()")
        self._count()
        pairs = [
            (p.grad, psf)
            for p, psf in zip(self._perturbed, self._psf, strict=True)
            if p.requires_grad and p.grad is not None and psf is not None
        ]
        capturing = self._capturing()
        if capturing and not pairs and self.gamma > 0:
            raise RuntimeError(
                "reuse_(): there is no PSF to capture; capture the step with perturbed() first"
            )
        # In a graph it is replayed() that ends the reuse, whatever the age is at the capture.
        if pairs and self.gamma > 0 and (capturing or self._age < self.max_reuse):
            self._decay.mul_(self.gamma)
            scale = self._decay if self.scaler is None else self.scaler.scale(self._decay)
            whole = [g for g, _ in pairs]
            grads, psf = self._local(whole), self._local([psf for _, psf in pairs])
            scale, limit = scale.to(grads[0].device), None
            if self.bounded:
                limit = self._limit if self.scaler is None else self.scaler.scale(self._limit)
                limit = limit.to(grads[0].device)
                if self._sharded:
                    share = global_norm(whole) / limit
                    scale, limit = scale * share.where(share < 1, 1).to(scale), None
            ops.psf_reuse_(grads, psf, scale, limit=limit)
        self._leave()
        self._end(sampled=False)

    def replayed(self) -> None:
        """Ends an iteration that replayed a CUDA graph of :meth:`perturbed` or of :meth:`reuse_`.

        ::

            (sampled_graph if vsam.decide() else reuse_graph).replay()
            vsam.replayed()

        Capture the sampled step first, then the other one, and replay it first too: in a graph the PSF has
        memory of its own, which only the sampled graph fills. An iteration of the warm-up is a sampled one.
        """
        self.sampled, self._ended = self.decide(), True
        self._count()
        if self._age >= self.max_reuse:
            self._decay.zero_()

    def backward(  # type: ignore[override]
        self, closure: Closure, *, same_masks: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Runs one pass or two and leaves the vSAM gradient in ``.grad``.

        Args:
            closure, same_masks: as for :meth:`SAM.backward`.

        Returns:
            The losses at ``w`` and at ``w + epsilon``, detached; None for the second where one pass was
            taken.
        """
        if self.decide():
            return super().backward(closure, same_masks=same_masks)
        loss = self._first_pass(closure)
        self.reuse_()
        return loss, None

    def __repr__(self) -> str:
        shown = dict(self._arguments, rho=self.rho, maximize=self.maximize)
        return self._shown(shown)

    def _end(self, sampled: bool) -> None:
        if self._capturing():
            return  # nothing ran: replayed() ends the iterations that do
        self.sampled, self._ended = sampled, True
        if not torch.compiler.is_compiling():  # else the next call counts: no graph could
            self._count()

    def _capturing(self) -> bool:
        """Whether what is called now goes into a CUDA graph and does not run."""
        return self._params[-1].is_cuda and torch.cuda.is_current_stream_capturing()

    def _count(self) -> None:
        """Counts the iteration that has ended, once."""
        if not self._ended:
            return
        if self.sampled and self._norms is not None:
            self._controller.observe(*self._norms)
        self._age = 0 if self.sampled else self._age + 1
        if self._iteration >= self.warmup_steps:
            self._step += 1
            self._taken += bool(self.sampled)
            if self._step == self._controller.window:
                self._controller.update()
                self._step = self._taken = 0
        self._iteration += 1
        self._ended, self._decision = False, None

    def state_dict(self) -> dict[str, Any]:
        """All that the next iterations depend on, as numbers and references to the tensors, not copies.

        Its structure is always the same, as ``torch.distributed.checkpoint`` needs it: where there is no PSF
        it has zeros.

        Raises:
            RuntimeError: inside :meth:`perturbed`, where also the model's weights are not those to save.
        """
        if self in guards.INSIDE:
            raise RuntimeError(
                "state_dict(): inside perturbed(), where the weights are w + epsilon; save after the block"
            )
        self._count()
        return {
            "version": _VERSION,
            "method": self._method,
            "progress": [self._iteration, self._step, self._taken, self._age],
            "sampled": self.sampled,
            "decision": self._decision,
            "has_psf": torch.tensor([psf is not None for psf in self._psf], dtype=torch.bool, device="cpu"),
            "psf": [
                _empty(p) if psf is None else psf for psf, p in zip(self._psf, self._perturbed, strict=True)
            ],
            "decay": self._decay,
            "limit": self._limit,
            "controller": self._controller.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, saved on any device; the PSF takes the dtype of the weights.

        Raises:
            KeyError: something is missing.
            ValueError: the state is of another version, method, model or ``window``. Nothing is changed.
        """
        self._check_method(state)
        checks.version(state, _VERSION)
        psf, decay, generator = (state[k] for k in ("psf", "decay", "generator"))
        has_psf = state["has_psf"].tolist()
        if not len(psf) == len(has_psf) == len(self._perturbed):
            raise ValueError(f"psf: expected {len(self._perturbed)} parameters, got {len(psf)}")
        for i, (saved, has, p) in enumerate(zip(psf, has_psf, self._perturbed, strict=True)):
            if has or saved.numel():  # empty for one that was not trained
                checks.same_shape(f"psf[{i}]", saved, "the parameter", p)
                if is_sharded(saved) != is_sharded(p):
                    kinds = ["a plain tensor", "a DTensor"]
                    raise ValueError(
                        f"psf[{i}]: expected {kinds[is_sharded(p)]}, as the parameter is, got "
                        f"{kinds[is_sharded(saved)]}; torch.distributed.checkpoint moves between them"
                    )
        iteration, step, taken, age = state["progress"]
        sampled, decision = state["sampled"], state["decision"]
        restored = torch.Generator("cpu")
        restored.set_state(generator.cpu())
        self._controller.load_state_dict(state["controller"])  # the last that may refuse, itself unchanged
        self.sampled, self._decision, self._ended = sampled, decision, False
        self._agreed = False
        self._iteration, self._step, self._taken, self._age = iteration, step, taken, age
        self._generator, self._psf = restored, [None] * len(self._perturbed)
        for i in [i for i, has in enumerate(has_psf) if has]:
            (self._psf[i],) = self._psf_memory.of([i], [self._perturbed[i].detach()])
            self._psf[i].copy_(psf[i])  # type: ignore[union-attr]
        device = next((psf.device for psf in reversed(self._psf) if psf is not None), "cpu")
        self._decay = decay.to(device, torch.float32, copy=True)
        limit = state.get("limit", torch.zeros(()))  # older states have none
        self._limit = limit.to(device, torch.float64, copy=True)


def _empty(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.requires_grad else p.new_zeros(0)
