"""The sharpness part of a gradient: taken from the iterations with two passes, added in those with one."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from . import checks
from .arguments import Model, Options
from .backups import Backups, copy_all
from .schedule import ScheduledSAM
from .sharding import is_sharded

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ReusingSAM(ScheduledSAM):
    """A :class:`ScheduledSAM` that keeps a part of the sampled gradients, its PSF, for later iterations.

    The PSF is of the parameters that are perturbed and had a gradient in both passes; there is none after an
    exception inside :meth:`perturbed`, until the next sample. A method makes it of both gradients in
    ``_make`` and adds it to later ones in ``_add``.
    """

    _keeps_difference = True

    def __init__(
        self, model: Model, rho: float, settings: dict[str, Any], **options: "Unpack[Options]"
    ) -> None:
        super().__init__(model, rho, settings, **options)
        self._psf: list[Tensor | None] = [None] * len(self._perturbed)
        # Inside perturbed(): gradients of the first pass, by place.
        self._first: list[tuple[int, Tensor]] = []
        self._psf_memory = Backups()  # its own: the loop may keep or reuse that of the gradients

    def _make(self, psf: list[Tensor], grads: list[Tensor]) -> None:
        """Makes ``psf``, which holds the gradients of the first pass, what is reused; ``grads`` are those of
        the second."""
        raise NotImplementedError

    def _add(self, grads: list[Tensor], psf: list[Tensor]) -> None:
        """Adds the PSF to ``grads``."""
        raise NotImplementedError

    def _reuses(self) -> bool:
        """Whether this iteration adds the PSF, if there is one."""
        return True

    def _clear(self) -> list[tuple[Tensor, int]]:
        """Keeps the gradients of the first pass, which become the PSF."""
        places = [i for i, p in enumerate(self._perturbed) if p.requires_grad and p.grad is not None]
        grads = [cast(Tensor, self._perturbed[i].grad) for i in places]
        kept = self._psf_memory.of(places, grads)
        self._psf = [None] * len(self._perturbed)
        copy_all(self._local(grads), to=self._local(kept))
        self._first = list(zip(places, kept, strict=True))
        return super()._clear()

    @torch.no_grad()
    def _capture(self) -> None:
        first, self._first = self._first, []
        second = [self._perturbed[i].grad for i, _ in first]
        both = [(i, sgd, g) for (i, sgd), g in zip(first, second, strict=True) if g is not None]
        if both:
            self._make([sgd for _, sgd, _ in both], [g for _, _, g in both])
            for i, psf, _ in both:
                self._psf[i] = psf

    @torch.no_grad()
    def _reuse(self) -> None:
        if not self._reuses():
            return
        pairs = [
            (p.grad, psf)
            for p, psf in zip(self._perturbed, self._psf, strict=True)
            if p.requires_grad and p.grad is not None and psf is not None
        ]
        if pairs:
            self._add([g for g, _ in pairs], [psf for _, psf in pairs])
        elif self._capturing():
            raise RuntimeError(
                "reuse_(): there is no PSF to capture; capture the step with perturbed() first"
            )

    def state_dict(self) -> dict[str, Any]:
        """:meth:`ScheduledSAM.state_dict`; parameters without a PSF have zeros."""
        return {
            **super().state_dict(),
            "has_psf": torch.tensor([psf is not None for psf in self._psf], dtype=torch.bool, device="cpu"),
            "psf": [
                _empty(p) if psf is None else psf for psf, p in zip(self._psf, self._perturbed, strict=True)
            ],
        }

    def _load(self, state: dict[str, Any]) -> None:
        psf, has_psf = state["psf"], state["has_psf"].tolist()
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
        devices = (
            p.device for p, has in zip(reversed(self._perturbed), reversed(has_psf), strict=True) if has
        )
        self._load_rest(state, next(devices, torch.device("cpu")))  # may refuse too
        self._psf = [None] * len(self._perturbed)
        for i in [i for i, has in enumerate(has_psf) if has]:
            (memory,) = self._psf_memory.of([i], [self._perturbed[i].detach()])
            self._psf[i] = memory.copy_(psf[i])

    def _load_rest(self, state: dict[str, Any], device: torch.device) -> None:
        """Restores the method's own part, whose 0-d tensors go to ``device``; if it refuses, nothing is
        changed."""


def _empty(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.requires_grad else p.new_zeros(0)
