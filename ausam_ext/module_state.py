"""What a forward pass changes in a model besides its trained weights, and how it comes back.

Running statistics, observers of quantisation, code books, queues, the vectors of spectral norm, a teacher's
weights: a batch must count once in them, though SAM runs it twice. They are buffers, or parameters without
gradient, and nothing tells which of them a second pass will change. So small ones are copied before every
second pass and written back after it. A large buffer has a copy that is made anew only after its version
counter or its address has moved. What is written without moving either (through ``.data``, or by batch
normalisation) is found by comparing values in steps that look: the first, the 2nd, 4th, 8th and so on,
every 64th, and those in which modules have changed between training and evaluation. Large frozen weights,
of which a copy would cost too much, are compared by sums and copied only once they have changed.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .backups import Backups, copy_all
from .sharding import is_sharded, local

_SMALL = 1 << 16  # bytes: to copy so much costs less than to find out whether it has to be
_CHUNK = 1 << 22  # elements that are added up at once; bounds the temporaries
_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


class ModuleState:
    """Buffers of ``modules`` and the frozen of ``params``; both may appear, change and vanish at any time."""

    def __init__(self, modules: Iterable[nn.Module], params: Iterable[nn.Parameter]) -> None:
        self.modules, self._params = list(modules), list(params)
        self._backups = Backups()
        self._large: dict[tuple[int, str], _Buffer | _Frozen] = {}
        # As they were when before() was called last, and mostly still are:
        self._places: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]] = []  # of each module
        self._buffers: list[Tensor | None] = []  # of all
        self._trained: list[bool] = []  # of each parameter; none, so that the first call looks
        self._stored: list[Tensor] = []  # what of it has memory in this process,
        self._memory: list[Tensor] = []  # and that memory
        self._pointers: list[int] = []
        self._small: list[tuple[tuple[int, str], Tensor]] = []
        self._watched: list[tuple[_Buffer | _Frozen, Tensor]] = []
        self._training: list[bool] = []
        self._look, self._steps = False, 0
        for i, p in enumerate(self._params):  # so that what the first first pass changes is known
            t = None if p.requires_grad else _memory(p)
            if t is not None and t.nbytes > _SMALL:
                self._large[i, ""] = _Frozen(t)

    def __getstate__(self) -> dict[str, Any]:
        """What is not found again by the next :meth:`before`."""
        found = ("_places", "_buffers", "_trained", "_stored", "_memory", "_pointers", "_small", "_watched")
        return {**self.__dict__, **{name: [] for name in found}}

    def before(self) -> tuple[list[Tensor], list[Tensor]]:
        """Call it before the weights move: what is to be copied and written back in this step, and where to.

        What is large is copied here and, if it has changed, written back by :meth:`after`.
        """
        if torch.compiler.is_compiling() or not self._is_as_it_was():
            self._find()
        if self._watched:
            self._look = self._has_to_look()
            for large, t in self._watched:
                large.before(t, self._look)
        if not self._small:
            return [], []
        tensors = [t for _, t in self._small]
        return tensors, self._backups.of([key for key, _ in self._small], tensors)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever a pass inside changes comes back when the block ends."""
        state, copies = self.before()
        copy_all(state, to=copies)
        try:
            yield
        finally:
            copy_all(copies, to=state)
            self.after()

    def _is_as_it_was(self) -> bool:
        return (
            self._trained == [p.requires_grad for p in self._params]
            and self._pointers == [t.data_ptr() for t in self._stored]
            and self._has_its_buffers()
        )

    def _has_its_buffers(self) -> bool:
        now = [t for m in self.modules for t in m._buffers.values()]
        return len(now) == len(self._buffers) and all(map(is_, now, self._buffers))

    def _find(self) -> None:
        compiling, kind = torch.compiler.is_compiling(), self._params[0].device.type
        self._places = [(m._buffers, dict(m._buffers.items())) for m in self.modules]
        self._buffers = [t for _, buffers in self._places for t in buffers.values()]
        self._trained = [p.requires_grad for p in self._params]
        self._stored, self._memory, self._small, self._watched = [], [], [], []
        found: list[tuple[tuple[int, str], Tensor]] = [
            ((i, name), t)
            for i, (_, buffers) in enumerate(self._places)
            for name, t in buffers.items()
            if t is not None
        ]
        found += [((i, ""), p) for i, p in enumerate(self._params) if not p.requires_grad]
        for key, stored in found:
            t = _memory(stored)
            if t is None:
                continue
            if not (compiling or is_sharded(stored)):
                self._stored.append(stored)
                self._memory.append(t)
            # What is of another kind of device than the weights does not go into one call with them.
            if (t.nbytes <= _SMALL and t.device.type == kind) or (compiling and key[1]):
                self._small.append((key, t))
            elif not compiling:
                if key not in self._large:
                    self._large[key] = _Buffer() if key[1] else _Frozen(t)
                self._watched.append((self._large[key], t))
        self._pointers = [t.data_ptr() for t in self._memory]

    def _has_to_look(self) -> bool:
        if any(t.is_cuda for _, t in self._watched) and torch.cuda.is_current_stream_capturing():
            return False
        self._steps += 1
        then, self._training = self._training, [m.training for m in self.modules]
        if then != self._training:  # which explains what changes now
            for large, _ in self._watched:
                large.unseen = 0
            return True
        return self._steps % 64 == 0 or self._steps & (self._steps - 1) == 0

    def after(self) -> None:
        """Writes back what is large and has changed; puts back what was replaced, added or removed."""
        for large, t in self._watched:
            large.after(t, self._look)
        if self._pointers != [t.data_ptr() for t in self._stored]:
            for stored, t in zip(self._stored, self._memory, strict=True):
                if stored.data_ptr() != t.data_ptr():  # it was given other memory, through .data
                    stored.data = t
        if not self._has_its_buffers():
            for now, then in self._places:
                for name in [name for name in now.keys() if name not in then]:  # noqa: SIM118  TorchScript's too
                    del now[name]
                for name, buffer in then.items():
                    now[name] = buffer


class _Buffer:
    """A large buffer, of which there is always a copy."""

    def __init__(self) -> None:
        self._copy: Tensor | None = None
        self._mark: tuple[int, int] | None = None  # with which it equals the copy
        self._unmarked = False  # it was seen to change without moving its mark
        self.unseen = 0  # steps since the last that looked

    def before(self, t: Tensor, look: bool) -> None:
        known = self._unmarked
        if self._has_changed(t, look):
            if self.unseen and self._unmarked and not known:
                _warn(f"a buffer of shape {tuple(t.shape)}{_since(self.unseen)}")
            self._copy = t.clone()
            self._mark = _mark(t)

    def after(self, t: Tensor, look: bool) -> None:
        if self._has_changed(t, look) and self._copy is not None:
            t.copy_(self._copy)
            self._mark = _mark(t)
        self.unseen = 0 if look else self.unseen + 1

    def _has_changed(self, t: Tensor, look: bool) -> bool:
        if self._copy is None or self._unmarked or self._mark != _mark(t):
            return True
        self._unmarked = look and not torch.equal(t, self._copy)
        return self._unmarked


class _Frozen:
    """A large parameter without gradient, of which there is a copy only if second passes change it."""

    def __init__(self, t: Tensor) -> None:
        self._copy: Tensor | None = None
        self._changes: bool | None = None  # whether second passes change it; None if nothing says so yet
        self._mark, self._sums = _mark(t), _sums(t)
        self.unseen = 0

    def before(self, t: Tensor, look: bool) -> None:
        mark, suspected = _mark(t), False
        if look or (self._changes is None and mark != self._mark):  # the first pass is like the second
            then, self._sums = self._sums, _sums(t)
            suspected = self._changes is None and then != self._sums
            if suspected and mark == self._mark and self.unseen:
                _warn(f"a frozen parameter of shape {tuple(t.shape)}{_since(self.unseen)}")
        if self._changes or suspected:
            self._copy = t.clone()
        self._mark = mark

    def after(self, t: Tensor, look: bool) -> None:
        if self._copy is not None:
            if self._changes is None:
                self._changes = not torch.equal(t, self._copy)
            if self._changes:
                t.copy_(self._copy)
            self._copy = None
        elif self._mark != _mark(t) or (look and self._sums != _sums(t)):
            self._changes = True
            _warn(f"a frozen parameter of shape {tuple(t.shape)}")
        self._mark = _mark(t)
        self.unseen = 0 if look else self.unseen + 1


def _since(unseen: int) -> str:
    return f" in the last {unseen} steps or some of them"


def _warn(what: str) -> None:
    warnings.warn(
        f"perturbed(): the second pass changed {what}, before anything told that it would; from now on that "
        "is undone",
        stacklevel=2,
    )


def _memory(t: Tensor) -> Tensor | None:
    """The part of ``t`` that lies in this process; None if it has no memory that can be written to."""
    if type(t) not in _PLAIN:
        t = t if is_lazy(t) else local(t)
        if is_lazy(t) or is_traceable_wrapper_subclass(t):
            return None
    if t.layout is not torch.strided or t.device.type == "meta":
        return None
    if not torch.compiler.is_compiling() and t.is_inference():
        return None
    if any(stride == 0 and size > 1 for stride, size in zip(t.stride(), t.shape, strict=True)):
        return None  # expanded
    return t.detach()


def _mark(t: Tensor) -> tuple[int, int]:
    return t._version, t.data_ptr()


def _sums(t: Tensor) -> list[int]:
    """Tells contents apart, also the same numbers in another order (synchronises)."""
    numbers = t.reshape(-1).view(torch.uint8 if t.nbytes % 4 else torch.int32)
    parts = [part.view(-1, 1 if part.numel() % 64 else 64).sum(0) for part in numbers.split(_CHUNK)]
    return torch.cat(parts).tolist()
