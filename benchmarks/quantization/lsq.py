"""Learned step size quantisation (LSQ, arXiv 1902.08153), W4A4: the distance of the levels is a parameter.

``s * round(clamp(v / s, -Qn, Qp))`` takes the place of each layer's weight and of its input ``v``. Each has a
step ``s`` of its own, which the optimizer trains and SAM perturbs with all other parameters.

torch's ``_fake_quantize_learnable_per_tensor_affine`` is not used: it waits for the GPU to read the step, and
counts values up to half a step beyond the outer levels as inside.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ausam_ext import checks

from .layers import QuantizedLayer, of_kind, replace

BITS = 4


class _Step(torch.autograd.Function):
    """``max(|step|, 1e-8)``, with ``factor`` times the gradient.

    SAM or the optimizer may push a step below 0. Cut off there, it would make all outputs of its layer 0 and
    get no gradient that brings it back: small networks die of that. Its size makes it turn around instead.
    """

    @staticmethod
    def forward(ctx: Any, step: Tensor, factor: float) -> Tensor:
        ctx.factor, ctx.below = factor, step < 0
        return step.abs().clamp(min=1e-8)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad * ctx.factor
        return torch.where(ctx.below, -grad, grad), None


def quantize_lsq(v: Tensor, step: Tensor, low: int, high: int, number: int) -> Tensor:
    """``step * round(clamp(v / step, low, high))``.

    The gradient for ``v`` is 1 between the outer levels and 0 beyond; that for ``step`` is
    ``round(v / step) - v / step`` between them, ``low`` below and ``high`` above, each times
    ``1 / sqrt(number * high)``.
    """
    step = _Step.apply(step, 1 / math.sqrt(number * high))
    exact = v.to(torch.promote_types(v.dtype, torch.float32))  # 16 bits do not tell 256 levels apart
    ratio = (exact / step).clamp(low, high)
    return ((ratio + (ratio.round() - ratio).detach()) * step).to(v.dtype)


class Quantizer(nn.Module):
    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__()
        self.low = -(1 << bits - 1) if signed else 0
        self.high = self.low + (1 << bits) - 1
        self.step = nn.Parameter(torch.ones(()))

    def initial(self, v: Tensor) -> Tensor:
        """``2 mean|v| / sqrt(Qp)``."""
        return 2 * v.detach().abs().mean() / math.sqrt(self.high)


class Weight(Quantizer):
    """Signed; starts from the ``weight`` that it will quantise."""

    def __init__(self, bits: int, weight: Tensor) -> None:
        super().__init__(bits, signed=True)
        self.step = nn.Parameter(self.initial(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return quantize_lsq(weight, self.step, self.low, self.high, weight.numel())


class Activation(Quantizer):
    """Starts from the first batch that passes in training; the buffer ``started`` says whether it has.

    (In several processes each would start from a batch of its own: give all of them the state of one.)
    The gradient of the step is scaled by the features of one sample, so that it does not depend on how many
    of a batch are trained on.
    """

    started: Tensor

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed)
        self.register_buffer("started", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():  # no branch, which would wait for the GPU
                self.step.copy_(torch.where(self.started, self.step, self.initial(x)))
            self.started.fill_(True)
        return quantize_lsq(x, self.step, self.low, self.high, x[0].numel())


def quantize(model: nn.Module, *, ends: int | None = 8) -> nn.Module:
    """Quantises weight and input of all convolutions and linear layers.

    Inputs have levels from 0 up, as they come from a ReLU, but for the images, which may be negative. Changes
    ``model`` in place and returns it; load the weights to start from before, and make the optimizer after.

    Args:
        ends: bits of the first and the last layer; None leaves both as they are.

    Raises:
        TypeError, ValueError: the model has no such layer or is quantised already, or ``ends`` is below 2.
            Nothing is changed.
    """
    if ends is not None:
        checks.integer("ends", ends, 2)
    layers = of_kind(model, nn.Conv2d, nn.Linear)
    new: dict[str, nn.Module] = {}
    for i, (name, layer) in enumerate(layers.items()):
        bits = ends if i in (0, len(layers) - 1) else BITS
        if bits is not None:
            activation = Activation(bits, signed=i == 0)
            new[name] = QuantizedLayer(layer, Weight(bits, layer.weight), activation)
    return replace(model, new)
