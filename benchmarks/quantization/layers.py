"""Layers whose weight and input pass through quantisers, and how a network gets them."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class QuantizedLayer(nn.Module):
    """``layer`` on what the quantisers make of its weight and of its input. The bias stays as it is."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, weight: nn.Module, x: nn.Module) -> None:
        super().__init__()
        self.layer, self.weight, self.x = layer, weight, x

    def forward(self, x: Tensor) -> Tensor:
        x, weight, bias = self.x(x), self.weight(self.layer.weight), self.layer.bias
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        return self.layer._conv_forward(x, weight, bias)


def of_kind(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, Any]:
    """The modules in ``model`` of these kinds by name, in the order in which it has them.

    Raises:
        ValueError: there are none, or the model is quantised already.
    """
    modules = {name: m for name, m in model.named_modules() if name}
    if any(isinstance(m, QuantizedLayer) for m in modules.values()):
        raise ValueError("model: expected one that is not quantised, got one that is; make another")
    found = {name: m for name, m in modules.items() if isinstance(m, kinds)}
    if not found:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"model: expected one that has {names} in it, got {type(model).__name__}")
    return found


def replace(model: nn.Module, new: dict[str, nn.Module]) -> nn.Module:
    """Puts each of ``new`` in the place of the module of its name, on the model's device and in its mode."""
    device = next(model.parameters()).device
    for name, module in new.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module.to(device).train(model.training))
    return model
