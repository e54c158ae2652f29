"""The exponential average of a network, without waiting for a GPU."""

from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


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

    def update_parameters(self, model: nn.Module) -> None:
        old, new = tensors(self.module), tensors(model)
        if [(name, t.shape) for name, t in old.items()] != [(name, t.shape) for name, t in new.items()]:
            raise RuntimeError(
                "update(): the model has other parameters or buffers than when MESA was made; make a new one"
            )
        means = [name for name, t in old.items() if t.is_floating_point() or t.is_complex()]
        torch._foreach_lerp_([old[name] for name in means], [new[name] for name in means], 1 - self.decay)
        for name in old.keys() - set(means):
            old[name].copy_(new[name])
        self.n_averaged += 1


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, also those that a ``state_dict`` leaves out."""
    return {name: t.detach() for name, t in chain(module.named_parameters(), module.named_buffers())}
