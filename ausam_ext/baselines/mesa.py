"""MESA, memory-efficient sharpness-aware training (Du et al. 2022, arXiv 2205.14083).

``v`` are averaged weights, at first those of the network, ``w``. In each step:

1. ``z = f_w(x)``; after epoch ``start_epoch`` also ``past = f_v(x)``, on the same input, in evaluation mode
2. ``L = CE + lam * tau^2 * mean_i KL(softmax(past_i / tau) || softmax(z_i / tau))``
3. the optimizer's step; then ``v = decay * v + (1 - decay) * w``, and so for the buffers

Cost: 2 forwards, one without a gradient, and 1 backward, of SAM's 2 and 2; one copy of the network.

The official code's default of ``lam`` is 0.3; its instructions, and this, have 0.8. It averages buffers of
whole numbers too; here they are copied.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import arguments, checks
from ..sharding import gatherers
from .average import Average, tensors
from .distillation import Distillation


class MESA(Distillation):
    """Holds the network to what the average of its weights says::

        mesa = MESA(model)
        for epoch in range(epochs):
            mesa.set_epoch(epoch)
            for x, y in loader:
                logits = model(x)
                (F.cross_entropy(logits, y) + mesa.penalty(logits, x)).backward()
                optimizer.step(); optimizer.zero_grad()
                mesa.update()

    Make it before the first step, once the model is on its device. Nothing is synchronised. The average has
    the dtypes of the weights, of which 16 bits are too coarse for a ``decay`` near 1 (autocast leaves them
    32). Each of several processes averages its own running statistics; the weights are the same in all.

    Args:
        model: the network, also wrapped by ``DistributedDataParallel``: then what it wraps is averaged.
        lam: weight of the term.
        tau: temperature.
        decay: of the average, in a step, from 0 to 1.
        start_epoch: the last epoch without the term; -1 if none is.

    Attributes:
        averaged: a ``torch.optim.swa_utils.AveragedModel``, in evaluation mode.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lam: float = 0.8,
        tau: float = 5.0,
        decay: float = 0.9998,
        start_epoch: int = 5,
    ) -> None:
        super().__init__(lam, tau, start_epoch)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        if gatherers(arguments.one_module(model, "MESA")):
            raise TypeError("model: expected one that is whole in each process, got one of fully_shard")
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        decay = checks.number("decay", decay, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        self.averaged = Average(self._model, decay)

    def penalty(self, logits: Tensor, *inputs: Any) -> Tensor:
        """What to add to the loss.

        The mean is over the whole batch; a sample whose ``past_i`` is not finite adds 0 to it.

        Args:
            logits: ``[n, classes]``; float32, float64, bfloat16 or float16: what the model gave.
            inputs: what it was given. If it ran under autocast, call this there too.

        Returns:
            0-d, float32, or float64 for float64 logits. Up to ``start_epoch`` a zero without a gradient, and
            the average is not run.

        Raises:
            TypeError, ValueError: what the average gives for the inputs is not like the logits.
        """
        checks.tensor("logits", logits, checks.FLOATING, dim=2)
        if not self._begun():
            return self._term(None, logits)
        if self.averaged.training:  # it was evaluated, as a network that trains
            self.averaged.eval()
        with torch.no_grad():
            past = self.averaged(*inputs)
        checks.tensor("model(*inputs)", past, checks.FLOATING, dim=2)
        checks.same_shape("model(*inputs)", past, "logits", logits)
        return self._term(past, logits)

    def update(self) -> None:
        """Call it after the optimizer's step: ``v = decay * v + (1 - decay) * w``.

        Raises:
            RuntimeError: the model has other parameters or buffers than when this was made.
        """
        self.averaged.update_parameters(self._model)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "averaged": tensors(self.averaged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, saved on any device.

        Raises:
            KeyError, TypeError, ValueError: something is missing; the state is not one of a MESA, of another
                version or of another model. Nothing is changed.
        """
        epoch, saved, own = self._epoch_of(state), state["averaged"], tensors(self.averaged)
        for name, t in own.items():
            checks.same_shape(name, checks.tensor(name, saved[name], [t.dtype]), "this model's", t)
        self.epoch = epoch
        for name, t in own.items():
            t.copy_(saved[name])
