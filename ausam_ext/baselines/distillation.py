"""What SAF and MESA share (Du et al. 2022, arXiv 2205.14083): a term of the loss in place of the second pass.

After epoch ``start_epoch``::

    L = CE + lam * tau^2 * mean_i KL(softmax(past_i / tau) || softmax(z_i / tau))

``z_i`` are the logits of sample ``i``, ``past_i`` those of earlier weights, without a gradient: of which ones
is what SAF and MESA differ in. A step into a sharp place changes the logits much, and the term's gradient in
``z_i``, ``lam * tau * (softmax(z_i / tau) - softmax(past_i / tau)) / n``, takes that back.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..reference import accumulation_dtype

_VERSION = 1


class Distillation:
    """The term, and from which epoch on there is one."""

    def __init__(self, lam: float, tau: float, start_epoch: int) -> None:
        self.lam = checks.number("lam", lam, "a finite number not below 0", lambda v: v >= 0)
        self.tau = checks.number("tau", tau, "a finite number above 0", lambda v: v > 0)
        self.start_epoch = checks.integer("start_epoch", start_epoch, -1)
        self.epoch = 0

    def __repr__(self) -> str:
        shown = f"lam={self.lam}, tau={self.tau}, start_epoch={self.start_epoch}, epoch={self.epoch}"
        return f"{type(self).__name__}({shown})"

    def set_epoch(self, epoch: int) -> None:
        """Call it before each epoch; the first is 0."""
        self.epoch = checks.integer("epoch", epoch, 0)

    def _begun(self) -> bool:
        return self.lam > 0 and self.epoch > self.start_epoch

    def _term(self, past: Tensor | None, logits: Tensor) -> Tensor:
        """0-d, float32 (float64 for float64 logits); a zero without a gradient if there is no past.

        A row of ``past`` that is not finite adds nothing, but still counts in the mean: what a sample
        weighs does not depend on the others of its batch.
        """
        dtype = accumulation_dtype([logits])
        if past is None:
            return torch.zeros((), dtype=dtype, device=logits.device)
        past = past.to(logits.device)
        known = past.isfinite().all(1)
        target = F.log_softmax(past.where(known[:, None], 0).to(dtype) / self.tau, dim=1)
        now = F.log_softmax(logits.to(dtype) / self.tau, dim=1)
        divergence = F.kl_div(now, target, reduction="none", log_target=True).sum(1)
        return self.lam * self.tau**2 * divergence.where(known, 0).mean()

    def state_dict(self) -> dict[str, Any]:
        """Everything, as numbers and references to the tensors, not copies, as torch's own ``state_dict``."""
        return {"version": _VERSION, "method": type(self).__name__, "epoch": self.epoch}

    def _epoch_of(self, state: dict[str, Any]) -> int:
        """Refuses a state of another class or version."""
        if state["method"] != type(self).__name__:
            raise ValueError(f"method: expected {type(self).__name__}, got a state of {state['method']}")
        checks.version(state, _VERSION)
        return checks.integer("epoch", state["epoch"], 0)
