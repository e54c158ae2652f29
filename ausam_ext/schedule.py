"""SAM whose second pass is taken in some iterations only: when, and what the others reuse."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import checks, misuse
from .agreement import refuse_differences
from .arguments import Model, Options
from .passes import Closure, random_state
from .sam import SAM

if TYPE_CHECKING:
    from typing_extensions import Unpack

_UNDECIDED = 100  # more than a loop that means it


class ScheduledSAM(SAM):
    """The iteration of every method that takes SAM's second pass in some iterations only.

    With a closure (see :class:`SAM`)::

        loss, loss_perturbed = sam.backward(closure)  # loss_perturbed is None if one pass was enough
        optimizer.step()

    Explicitly::

        loss.backward()
        if sam.decide():  # when: `_decides`
            with sam.perturbed():
                criterion(model(x), y).backward()  # `_capture` then takes what is reused
        else:
            sam.reuse_()  # what: `_reuse` adds it
        optimizer.step()

    An iteration ends with :meth:`perturbed` or :meth:`reuse_`, and is counted by the next call of any of
    these. Processes that are given the same arguments and gradients decide alike. If the model is wrapped for
    several processes, the first decision, also the first after :meth:`load_state_dict`, compares arguments
    and progress and raises ``ValueError`` in every process if they differ.

    A method is a subclass that defines ``_decides`` and, if they are needed, ``_capture``, ``_reuse``,
    ``_counted`` and its part of the state.

    Args:
        model, rho, options: as for :class:`SAM`.
        settings: the method's own arguments, which have to be the same in every process.

    Attributes:
        sampled: whether the last iteration took the second pass; None before the first.
    """

    _version = 1  # of the state

    def __init__(
        self, model: Model, rho: float, settings: dict[str, Any], **options: "Unpack[Options]"
    ) -> None:
        super().__init__(model, rho, **options)
        self.sampled: bool | None = None
        self._iteration = 0  # the number of those that were counted
        self._decision: bool | None = None  # of the iteration that has not ended yet
        self._ended = False  # it has, but is not counted yet
        self._undecided = 0  # iterations in a row with perturbed() that nobody asked decide() about
        self._arguments = {
            "rho": self.rho,
            **settings,
            "adaptive": self.adaptive,
            "groups": [group["rho"] for group in self.groups],
            "scaler": self.scaler is not None,
            "maximize": self.maximize,
            "params": len(self._perturbed),
        }
        self._agreed = False

    def _decides(self) -> bool:
        """Whether this iteration takes the second pass; asked once in each."""
        raise NotImplementedError

    def _capture(self) -> None:
        """The second pass has ended: takes from it what later iterations reuse."""

    def _reuse(self) -> None:
        """Adds what is reused to the gradient of the only pass."""

    def _counted(self) -> None:
        """The iteration has ended as ``sampled`` says."""

    def _progress(self) -> list[int]:
        """How far the method is, in numbers that are the same in every process."""
        return [self._iteration]

    def _decided_by(self) -> dict[str, Any]:
        """What else the decisions depend on."""
        return {}

    def decide(self) -> bool:
        """Whether this iteration takes the second pass: the same answer until the iteration ends."""
        self._count()
        self._agree()
        if self._decision is None:
            self._decision, self._undecided = self._decides(), 0
        return self._decision

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """:meth:`SAM.perturbed`; leaving it ends the iteration as a sampled one.

        After an exception inside, the iteration has not ended.
        """
        self._count()
        if not torch.compiler.is_compiling():
            self._warn_undecided()
        with super().perturbed():
            yield
        self._capture()
        self._end(sampled=True)

    def _warn_undecided(self) -> None:
        if self._decision is not None:
            return
        self._undecided += 1
        if self._undecided == _UNDECIDED:
            warnings.warn(
                f"{type(self).__name__}: {_UNDECIDED} steps in a row took perturbed() without decide(), "
                "which is plain SAM at its full cost; ask decide() first and call reuse_() if it says no, "
                "or use backward(closure)",
                stacklevel=4,
            )

    def reuse_(self) -> None:
        """Adds to ``.grad`` what the method reuses, if there is any; ends the iteration as not sampled."""
        if all(p.grad is None for p in self._params if p.requires_grad):
            raise RuntimeError("reuse_(): no parameter has a gradient; call backward() on the loss first")
        self._check("reuse_()")
        self._count()
        self._reuse()
        self._leave()
        self._end(sampled=False)

    def backward(self, closure: Closure, *, same_masks: bool = False) -> tuple[Tensor, Tensor | None]:
        """Runs one pass or two and leaves the method's gradient in ``.grad``.

        Args:
            closure, same_masks: as for :meth:`SAM.backward`.

        Returns:
            The losses at ``w`` and at ``w + epsilon``, detached; None for the second if one pass was taken.
        """
        self._count()
        self._agree()
        masks = random_state(self._params) if same_masks else None
        loss = self._first_pass(closure)
        if not self.decide():
            self.reuse_()
            return loss, None
        loss = loss.clone()  # the second pass may write to the same memory
        return loss, self._second_pass(closure, masks)

    def replayed(self) -> None:
        """Ends an iteration that replayed a CUDA graph of :meth:`perturbed` or of :meth:`reuse_`.

        ::

            (sampled_graph if sam.decide() else reuse_graph).replay()
            sam.replayed()

        Capture the sampled step first, then the other one, and replay it first too: in a graph, what is
        reused has its own memory, which only the sampled graph fills.
        """
        self.sampled, self._ended = self.decide(), True
        self._count()

    def _end(self, sampled: bool) -> None:
        if self._capturing():
            return  # nothing ran: replayed() ends the iterations that do
        self.sampled, self._ended = sampled, True
        if not torch.compiler.is_compiling():  # else the next call counts: no graph could
            self._count()

    def _count(self) -> None:
        """Counts the iteration that has ended, once."""
        if self._ended:
            self._counted()
            self._iteration += 1
            self._ended, self._decision = False, None

    def _capturing(self) -> bool:
        """Whether what is called now goes into a CUDA graph and does not run."""
        return self._params[-1].is_cuda and torch.cuda.is_current_stream_capturing()

    def _agree(self) -> None:
        """Compares what the decisions depend on: processes that decide differently would add up gradients of
        different passes."""
        if self._agreed:
            return
        arguments = {**self._arguments, "maximize": self.maximize}
        state = {"progress": self._progress(), "decision": self._decision, **self._decided_by()}
        refuse_differences(arguments, state, self._ddps, self._params)
        self._agreed = True

    def __repr__(self) -> str:
        return self._shown(dict(self._arguments, rho=self.rho, maximize=self.maximize))

    def state_dict(self) -> dict[str, Any]:
        """All that the next iterations depend on, as numbers and references to the tensors, not copies.

        Its structure is always the same, as ``torch.distributed.checkpoint`` needs it.

        Raises:
            RuntimeError: inside :meth:`perturbed`, in which the model's weights are not those to save either.
        """
        if self in misuse.INSIDE:
            raise RuntimeError(
                "state_dict(): inside perturbed(), in which the weights are w + epsilon; save after the block"
            )
        self._count()
        return {
            "version": self._version,
            "method": self._method,
            "progress": self._progress(),
            "sampled": self.sampled,
            "decision": self._decision,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, saved on any device; what is reused takes the dtype of the weights.

        Raises:
            KeyError: something is missing.
            ValueError: the state is of another version, method, model or length of what the method looks back
                on. Nothing is changed.
        """
        checks.method(state, self._method)
        checks.version(state, self._version)
        progress, sampled, decision = (state[k] for k in ("progress", "sampled", "decision"))
        self._load(state)
        self._iteration, self.sampled, self._decision = progress[0], sampled, decision
        self._ended = self._agreed = False

    def _load(self, state: dict[str, Any]) -> None:
        """Restores the method's part of the state; if it refuses, nothing is changed."""
