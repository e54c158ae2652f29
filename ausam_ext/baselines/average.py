"""The exponential average of a network, without waiting for a GPU."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .. import misuse

_CHANGED = "update(): the model has other parameters or buffers than when MESA was made; make a new one"


class Average(AveragedModel):
    """``v = decay * v + (1 - decay) * w`` of parameters and buffers, from ``w`` as it is now.

    Torch's own update copies the first time, and sends the number of updates to the GPU, for which it waits
    in every step. And it averages whole numbers, such as indices and masks, which have no average: here they
    are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self.n_averaged = torch.ones((), dtype=torch.int64, device="cpu")  # this one
        self.requires_grad_(False).eval()
        self._registrations = -1
        # Of the average and of the model, as the modules were then:
        self._params_of: list[tuple[Tensor, Tensor]] = []
        self._buffers_of: list[tuple[dict[str, Any], dict[str, Any]]] = []

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        if self._registrations != misuse.registrations():
            self._pair(model)
        pairs = dict(_pairs(self._buffers_of))  # which may be other tensors in every step
        means = [pair for pair in pairs.items() if pair[0].is_floating_point() or pair[0].is_complex()]
        own, others = zip(*self._params_of, *means, strict=True)
        torch._foreach_lerp_(own, others, 1 - self.decay)
        if len(means) < len(pairs):
            rest = [
                pair for pair in pairs.items() if not (pair[0].is_floating_point() or pair[0].is_complex())
            ]
            torch._foreach_copy_([v for v, _ in rest], [w for _, w in rest])
        self.n_averaged += 1

    def _pair(self, model: nn.Module) -> None:
        """Looks at the modules."""
        of_both = list(self.module.modules()), list(model.modules())
        if len(of_both[0]) != len(of_both[1]):
            raise RuntimeError(_CHANGED)
        modules = list(zip(*of_both, strict=True))
        self._params_of = list(dict(_pairs([(a._parameters, b._parameters) for a, b in modules])).items())
        self._buffers_of = [(a._buffers, b._buffers) for a, b in modules]
        self._registrations = misuse.registrations()


def _pairs(dicts: list[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors of the same names."""
    for own, others in dicts:
        if len(own) != len(others):
            raise RuntimeError(_CHANGED)
        for (name, v), (other, w) in zip(own.items(), others.items(), strict=True):
            if v is not None and w is not None and name == other and v.shape == w.shape:
                yield v, w
            elif v is not None or w is not None:
                raise RuntimeError(_CHANGED)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, also those that a ``state_dict`` leaves out."""
    return {name: t.detach() for name, t in chain(module.named_parameters(), module.named_buffers())}
