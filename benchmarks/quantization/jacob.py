"""Quantisation-aware training by Jacob et al. (arXiv 1712.05877), W4A4: 16 levels in a range.

The range of weights is that of their values now. That of activations is a moving average over batches in
training; evaluation uses the last. A gradient passes if the value lies in the range, and is 0 if it does not.

The average is a buffer, as BatchNorm's is: ``ausam_ext.SAM`` gives it back as the first pass left it.
"""

import torch
from torch import Tensor, nn

from .layers import QuantizedLayer, of_kind, replace

LEVELS = 16
LEVELS_OF_IMAGES = 256
AVERAGING = 0.01  # share of the newest batch


def fake_quantize(x: Tensor, low: Tensor, high: Tensor, levels: int = LEVELS) -> Tensor:
    """``x`` rounded to one of ``levels`` values of equal distance, of which one is 0.

    ``low`` and ``high`` (0-d) are moved to include 0; ``scale = (high - low) / (levels - 1)``, not below
    1e-8; ``zero = round(-low / scale)``; the values are ``(0 ... levels - 1 - zero) * scale``. The gradient
    is 1 from the lowest to the highest of these values and 0 beyond: torch's operator by itself would let it
    pass for half a step more.
    """
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    scale = ((high - low) / (levels - 1)).clamp(min=1e-8)
    zero = (-low / scale).round().clamp(0, levels - 1)
    x = x.clamp(-zero * scale, (levels - 1 - zero) * scale)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero.int(), 0, levels - 1)


class Weight(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize(weight, *weight.detach().aminmax())


class Activation(nn.Module):
    """Keeps averages of the smallest and the largest value, in buffers; the first batch sets them."""

    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(self, levels: int = LEVELS) -> None:
        super().__init__()
        self.levels = levels
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            low, high = x.detach().aminmax()
            share = torch.where(self.batches == 0, 1.0, AVERAGING)
            self.low += share * (low - self.low)
            self.high += share * (high - self.high)
            self.batches += 1
        return fake_quantize(x, self.low, self.high, self.levels)


def quantize(model: nn.Module) -> nn.Module:
    """Quantises the weights of all convolutions and linear layers and the outputs of all activations.

    The images are rounded to 256 levels before the first layer. Batch normalisation and biases stay as they
    are. Changes ``model`` in place and returns it; load the weights to start from before.

    Raises:
        ValueError: the model has no such layer, or no ReLU or ReLU6 (each has to be a module of its own), or
            is quantised already. Nothing is changed.
    """
    layers = of_kind(model, nn.Conv2d, nn.Linear)
    activations = of_kind(model, nn.ReLU, nn.ReLU6)
    new: dict[str, nn.Module] = {
        name: QuantizedLayer(layer, Weight(), nn.Identity() if i else Activation(LEVELS_OF_IMAGES))
        for i, (name, layer) in enumerate(layers.items())
    }
    new |= {name: nn.Sequential(relu, Activation()) for name, relu in activations.items()}
    return replace(model, new)
