"""What ESAM and K-SAM share: the last pass runs on samples that are chosen by their losses."""

from collections.abc import Callable
from inspect import signature
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import checks, misuse
from ..importance import number_kept
from ..sam import SAM

Losses = Callable[[Tensor | None], Tensor]


class SelectingSAM(SAM):
    """SAM that looks at the losses of single samples between its passes, so that it runs them all itself.

    ::

        def losses(positions):
            xs, ys = (x, y) if positions is None else (x[positions], y[positions])
            return F.cross_entropy(model(xs), ys, reduction="none")

        loss, loss_perturbed = sam.backward(losses)
        optimizer.step()

    What SAM promises holds. With several processes each chooses from its own part of the batch.

    Attributes:
        positions: ``[n]``, int64, ascending: the samples that were chosen last; None before the first step.
    """

    positions: Tensor | None = None
    _code: Any = None  # of the function that was looked at last
    _shares: tuple[str, ...]  # names of the attributes that SAM does not have

    @torch.enable_grad()
    def backward(self, losses: Losses) -> tuple[Tensor, Tensor]:
        """Clears the gradients, runs all passes and leaves the method's gradient in ``.grad``.

        Every call clears what is there: the gradients of several batches do not add up.

        Args:
            losses: runs the forward pass on those positions of the batch, ``[n]``, or on all if None, and
                returns their losses, not reduced, scaled or differentiated.

        Returns:
            The losses of all samples at ``w``, ``[K]``, and of the chosen at ``w + epsilon``, ``[n]``,
            detached.

        Raises:
            TypeError, ValueError: ``losses`` is not such a function. The weights are as before.
            RuntimeError: as :meth:`SAM.perturbed`.
        """
        self._refuse(losses)
        self._check("backward()")
        loss, positions = self._ascent(losses)
        with super().perturbed():
            if positions is None:
                positions = self._choose(losses, loss)
            loss_perturbed = self._differentiate(forward(losses, positions))
        self.positions = positions
        return loss, loss_perturbed

    def perturbed(self) -> NoReturn:
        """Is not for this method, which chooses samples between its passes: see :meth:`backward`.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"perturbed(): {type(self).__name__} runs all its passes itself; {_FORM}")

    def _ascent(self, losses: Losses) -> tuple[Tensor, Tensor | None]:
        """Leaves the gradient of the ascent in ``.grad``; returns the losses of all samples, and which are
        chosen, or None if :meth:`_choose` is to find that out at ``w + epsilon``."""
        raise NotImplementedError

    def _choose(self, losses: Losses, loss: Tensor) -> Tensor:
        raise NotImplementedError

    def _refuse(self, losses: Losses) -> None:
        code = getattr(losses, "__code__", None)
        if code is not None and code is self._code:  # as in the last step
            return
        if not callable(losses):
            raise TypeError(f"losses: expected a function of positions, got {losses!r}; {_FORM}")
        try:
            signature(losses).bind(None)
        except TypeError:
            raise TypeError(
                f"losses: expected a function of one argument, positions, got {losses!r}; {_FORM}. "
                f"SAMOptimizer and its closure are not for {type(self).__name__}: step the optimizer itself"
            ) from None
        except ValueError:  # it has no signature, as some that are written in C
            pass
        self._code = code

    def _differentiate(self, loss: Tensor, **options: Any) -> Tensor:
        """Adds the gradient of the mean to ``.grad``; returns the losses, detached."""
        mean = loss.mean()
        (mean if self.scaler is None else self.scaler.scale(mean)).backward(**options)
        return loss.detach()

    def _largest(self, scores: Tensor, share: float) -> Tensor:
        """Positions of the share of ``scores`` that matters most, ascending; of equals those that come first.

        With ``maximize`` those are the smallest. A NaN comes before all: the overflow that made it then
        reaches the gradient, and the scaler, as it does in SAM.
        """
        kept = number_kept(len(scores), share)
        ranked = (-scores if self.maximize else scores).sort(descending=True, stable=True).indices
        return ranked[:kept].sort().values

    def _shown(self, settings: dict[str, Any]) -> str:
        return super()._shown({**settings, **{name: getattr(self, name) for name in self._shares}})

    def _leave(self) -> None:
        misuse.leave(self)  # no watch over what is left in .grad: backward() clears it


_FORM = (
    "write `loss, loss_perturbed = sam.backward(losses)`, in which losses(positions) runs the forward pass "
    'on those positions of the batch, on all if None, and returns their losses with reduction="none"'
)


def share(name: str, value: float) -> float:
    return checks.number(name, value, "a number above 0 and at most 1", lambda v: 0 < v <= 1)


def forward(losses: Losses, positions: Tensor | None = None) -> Tensor:
    """The losses of a pass that needs a gradient."""
    loss = _per_sample(losses, positions)
    if not loss.requires_grad:
        raise ValueError(
            "losses: expected losses that depend on a weight with requires_grad=True, got none; return them "
            "without detach() and computed without torch.no_grad()"
        )
    return loss


@torch.no_grad()
def look(losses: Losses) -> Tensor:
    """The losses of all samples, in a pass without gradient."""
    return _per_sample(losses, None).clone()  # the next pass may write to the same memory


def _per_sample(losses: Losses, positions: Tensor | None) -> Tensor:
    name, n = ("losses(None)", "K") if positions is None else ("losses(positions)", len(positions))
    loss = checks.tensor(name, losses(positions), checks.FLOATING)
    if loss.dim() != 1 or not len(loss) or n not in ("K", len(loss)):
        raise ValueError(
            f'{name}: expected one loss per sample (reduction="none"), shape ({n},), got {tuple(loss.shape)}'
        )
    return loss
