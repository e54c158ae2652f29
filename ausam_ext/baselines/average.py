"""The exponential average of a network, without waiting for a GPU."""

from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .. import guards

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
        self._modules_of: list[tuple[nn.Module, nn.Module]] = []  # of the average, and of the model

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        pairs = self._pairs(model)
        means = [pair for pair in pairs if pair[0].is_floating_point() or pair[0].is_complex()]
        others = [pair for pair in pairs if not (pair[0].is_floating_point() or pair[0].is_complex())]
        torch._foreach_lerp_([v for v, _ in means], [w for _, w in means], 1 - self.decay)
        if others:
            torch._foreach_copy_([v for v, _ in others], [w for _, w in others])
        self.n_averaged += 1

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Each tensor of the average and the model's, those that several modules share once."""
        if self._registrations != guards.registrations():  # else the modules are those of the last time
            of_both = list(self.module.modules()), list(model.modules())
            if len(of_both[0]) != len(of_both[1]):
                raise RuntimeError(_CHANGED)
            self._modules_of = list(zip(*of_both, strict=True))
            self._registrations = guards.registrations()
        pairs: dict[int, tuple[Tensor, Tensor]] = {}
        for mine, theirs in self._modules_of:
            for own, others in ((mine._parameters, theirs._parameters), (mine._buffers, theirs._buffers)):
                if len(own) != len(others):
                    raise RuntimeError(_CHANGED)
                for (name, v), (other, w) in zip(own.items(), others.items(), strict=True):
                    if v is not None and w is not None and name == other and v.shape == w.shape:
                        pairs[id(v)] = v, w
                    elif v is not None or w is not None:
                        raise RuntimeError(_CHANGED)
        return list(pairs.values())


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, also those that a ``state_dict`` leaves out."""
    return {name: t.detach() for name, t in chain(module.named_parameters(), module.named_buffers())}
