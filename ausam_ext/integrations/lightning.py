"""SAM, vSAM and AUSAM in PyTorch Lightning's automatic optimization, for any LightningModule."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS

from .. import misuse
from ..importance import HandedOut
from ..indexed_loader import IndexedLoader as IndexedLoader  # for Lightning, which takes it as it is
from ..monitor import Monitor
from ..sam import SAM
from ..sampler import AUSAMBatchSampler
from ..schedule import ScheduledSAM
from ..vsam import VSAM

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.signature_utils import (
        is_param_in_hook_signature,
    )
except ModuleNotFoundError:  # the same under its older name
    from pytorch_lightning import Callback
    from pytorch_lightning.utilities.signature_utils import (
        is_param_in_hook_signature,
    )


_RATE = 0.3  # of second passes: the least that the papers' runs have on average


class SAMCallback(Callback):
    """Turns every step of a ``Trainer`` into one of SAM or vSAM; the optimizer stays as it is.

    ::

        Trainer(callbacks=[SAMCallback(lambda model: SAM(model, rho=0.05))]).fit(model, loader)

    Before the optimizer steps, ``training_step`` runs on the same batches once more, at ``w + epsilon``: on
    all that were accumulated, which are kept until then. What it logs there is dropped. The gradient is
    clipped once, after both passes. Checkpoints hold the state of vSAM and AUSAM's table;
    ``batches.indexed(loader)`` adds how far the epoch is. If the trainer has a logger, it gets what
    :class:`ausam_ext.Monitor` sees as ``sam/sharpness`` and so on, every ``log_every_n_steps`` steps.

    Args:
        make: makes the ``SAM`` or ``VSAM`` of the ``LightningModule``, when it is on its device.
        batches: AUSAM's, for :meth:`record`. The table moves to the device of the model, the processes of the
            trainer share each epoch, and their tables are added up at its end.

    Attributes:
        sam: what ``make`` returned, from the start of ``fit`` on.
    """

    def __init__(self, make: Callable[[nn.Module], SAM], batches: AUSAMBatchSampler | None = None) -> None:
        self.make = make
        self.batches = batches
        self.sam: SAM | None = None
        self._sam_state: dict[str, Any] | None = None  # of a checkpoint, until there is a `sam`
        self._input: tuple[Any, int] | None = None  # the batch and its number
        self._records: list[tuple[Tensor, Tensor]] = []  # index and loss, of this batch or of the second pass
        # What this step's gradient is of, and as which batch AUSAM knows it, for its weights.
        self._accumulated: list[tuple[Any, int, HandedOut | None]] = []
        self._first: list[tuple[Tensor, Tensor]] = []  # and the records of its first pass
        self._losses: list[Tensor] = []  # of this step's first pass, and then of its second
        self._monitor: Monitor | None = None
        self._logged = 0  # the step

    def record(self, index: Tensor, loss: Tensor) -> None:
        """Call it in ``training_step``: notes per-sample losses for AUSAM's table.

        Args:
            index: ``[B]``: which samples they belong to, as ``batches.indexed(loader)`` yields it.
            loss: ``[B]``, not reduced.
        """
        if self.batches is None:
            raise RuntimeError("record(): there is no table; give SAMCallback the AUSAMBatchSampler")
        self._records.append((index, loss.detach()))

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.batches is not None:
            self.batches.num_replicas, self.batches.rank = trainer.world_size, trainer.global_rank

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not pl_module.automatic_optimization:
            raise TypeError(
                "SAMCallback: with manual optimization both passes are up to training_step: call "
                "manual_backward() before and inside `with sam.perturbed():`"
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise TypeError(
                f"SAMCallback: precision {trainer.precision!r} looks for overflow between the two passes; "
                "use 'bf16-mixed', or manual optimization with SAM(scaler=trainer.precision_plugin.scaler)"
            )
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise TypeError(
                "SAMCallback: training_step(dataloader_iter) takes its batches itself, which the second pass "
                "cannot do again; use training_step(batch)"
            )
        for kind in type(trainer.strategy).__mro__:  # told without what they need installed
            if kind.__name__ in ("DeepSpeedStrategy", "FSDPStrategy"):
                raise TypeError(
                    f"SAMCallback: {kind.__name__} keeps weights and gradients out of SAM's sight; "
                    "use 'ddp', or ModelParallelStrategy with fully_shard in configure_model"
                )
        if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise TypeError(f"SAMCallback: {misuse.LBFGS_REFUSED}")
        self._forget()  # an earlier run may have been interrupted
        self.sam = self.make(pl_module)
        if not isinstance(self.sam, SAM):
            raise TypeError(f"make: expected it to return a SAM or VSAM, got {self.sam!r}")
        self._monitor, self._logged = Monitor(self.sam, self.batches), 0
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            self.sam._averaged_by([trainer.strategy.model])  # make() saw only what this wraps
        if self.batches is not None:
            self.batches.adlp.to(pl_module.device)
        self._load_sam_state()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if isinstance(self.sam, VSAM):  # here, as it would load the data if that is not loaded yet
            _warn_of_a_low_rate(self.sam, trainer.estimated_stepping_batches)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self.batches is not None:  # for select(); a loader's is set already
            self.batches.set_epoch(trainer.current_epoch)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._input, self._records = (batch, batch_idx), []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """A step begins: what was accumulated before and not stepped has no part in it."""
        self._accumulated, self._first, self._losses = [], [], []
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for p in pl_module.parameters():
            if id(p) not in trained:
                p.grad = None  # it is part of the direction, and no zero_grad() clears it

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """The batch takes part in the step: without a loss, or if nothing is trained, it would not."""
        if self._input is not None:  # the first pass
            self._accumulated.append((*self._input, self.batches._handed if self.batches else None))
            self._first += self._records
            self._losses.append(loss.detach())
            self._input = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        assert self.sam is not None and self._monitor is not None
        inputs, first, losses = self._accumulated, self._first, self._losses
        self._forget()
        if not inputs:
            # training_step gave no loss, or the epoch only collects statistics for averaged weights, at whose
            # end Lightning steps all the same, with the gradient of the last step that trained.
            optimizer.zero_grad()
            return
        if self.batches is not None and not first:
            raise RuntimeError(
                "training_step: expected it to call SAMCallback.record(index, loss), without which AUSAM's "
                "table stays empty"
            )
        if isinstance(self.sam, ScheduledSAM) and not self.sam.decide():
            self.sam.reuse_()
            self._monitor.update(torch.stack(losses).sum())
            return
        with self.sam.perturbed(), torch.enable_grad(), _without_logs(pl_module):
            for i, (batch, batch_idx, handed) in enumerate(inputs):
                if self.batches is not None:
                    self.batches._handed = handed
                last = i == len(inputs) - 1
                with nullcontext() if last else _no_sync(trainer.strategy):
                    self._second_pass(trainer, pl_module, optimizer, batch, batch_idx)
        second, self._records = self._records, []
        perturbed, self._losses = self._losses, []
        if perturbed:
            self._monitor.update(torch.stack(losses).sum(), torch.stack(perturbed).sum())
        if self.batches is not None:
            index, loss = (torch.cat(parts) for parts in zip(*first, strict=True))
            _, loss_perturbed = (torch.cat(parts) for parts in zip(*second, strict=True))
            self.batches.adlp.update(index, loss, loss_perturbed)

    def _forget(self) -> None:
        self._input, self._records, self._accumulated, self._first, self._losses = None, [], [], [], []

    def _second_pass(self, trainer: Any, pl_module: Any, optimizer: Any, batch: Any, batch_idx: int) -> None:
        arguments = [batch]
        if is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2):
            arguments.append(batch_idx)
        output = trainer.strategy.training_step(*arguments)
        loss = output["loss"] if isinstance(output, dict) else output
        if loss is not None:  # None: Lightning leaves the batch out, as it did in the first pass
            loss = loss / trainer.accumulate_grad_batches
            self._losses.append(loss.detach())
            trainer.strategy.backward(loss, optimizer)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if trainer.loggers and step != self._logged and step % trainer.log_every_n_steps == 0:
            assert self._monitor is not None
            self._logged = step
            pl_module.log_dict({f"sam/{name}": value for name, value in self._monitor.compute().items()})

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.batches is not None and trainer.world_size > 1:
            self.batches.adlp.sync()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self.batches is not None:
            state["adlp"] = self.batches.adlp.state_dict()
        if isinstance(self.sam, ScheduledSAM):
            state["sam"] = self.sam.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.batches is not None:
            self.batches.adlp.load_state_dict(state_dict["adlp"])
        self._sam_state = state_dict.get("sam")
        self._load_sam_state()

    def _load_sam_state(self) -> None:
        if isinstance(self.sam, ScheduledSAM) and self._sam_state is not None:
            self.sam.load_state_dict(self._sam_state)
            self._sam_state = None


def _warn_of_a_low_rate(vsam: VSAM, steps: float) -> None:
    """In all measurements the rate grew by no more than 4 % in a window of steps."""
    controller = vsam.controller
    windows = (steps - vsam.warmup_steps) / controller.window
    if controller.alpha > 0 and windows > 0 and controller.rate * 1.04 ** min(windows, 999) < _RATE:
        warnings.warn(
            f"VSAM: starts with a second pass in {controller.rate:.0%} of the steps, and {steps} steps are "
            f"too few to get from there to {_RATE:.0%}, which the papers' runs have on average or more; give "
            "it initial_rate=0.34",
            stacklevel=2,
        )


@contextmanager
def _without_logs(pl_module: Any) -> Iterator[None]:
    """The values at ``w + epsilon`` would replace those at ``w``, or be averaged with them."""
    pl_module.log = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del pl_module.log


def _no_sync(strategy: Any) -> Any:
    """Only the last of several backward passes has to average the gradients over processes."""
    return strategy.block_backward_sync() if hasattr(strategy, "block_backward_sync") else nullcontext()
