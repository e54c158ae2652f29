"""SAM, vSAM and AUSAM in the Hugging Face ``Trainer``."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback

from .. import checks
from ..sam import SAM
from ..sampler import AUSAMBatchSampler
from ..schedule import ScheduledSAM

_FILE = "sam.pt"  # in a checkpoint's folder
_INDEX = "ausam_index"  # of the samples of a batch, beside its columns


class SAMTrainer(Trainer):
    """A ``Trainer`` whose steps are those of SAM or vSAM; optimizer, schedule and clipping stay as they are.

    ::

        trainer = SAMTrainer(model, arguments, train_dataset=data, make=lambda model: SAM(model, rho=0.05))

    Before the optimizer steps, all micro-batches of the step run once more, at ``w + epsilon``; they are kept
    on the device until then. The loss that is logged is that of the first pass. With AUSAM::

        batches = AUSAMBatchSampler(ADLP(len(data)), arguments.train_batch_size, epochs=3, warmup_epochs=0.3)
        trainer = SAMTrainer(
            model, arguments, train_dataset=data, make=lambda model: SAM(model), batches=batches,
            losses=lambda outputs, labels: F.cross_entropy(outputs.logits, labels, reduction="none"),
        )

    Checkpoints hold vSAM's state and AUSAM's table; a run that is resumed within an epoch goes on as it was.

    Args:
        args, kwargs: those of ``Trainer``.
        make: makes the ``SAM`` or ``VSAM`` of the model, as it is wrapped for several processes, when the
            first step begins. For ``fp16=True``, give it ``scaler=trainer.accelerator.scaler``.
        batches: AUSAM's, of batches of ``args.train_batch_size``. The table moves to the device of the
            trainer, its processes share each epoch, and their tables are added up at its end.
        losses: with ``batches``: of the model's outputs and the labels, ``[B]``, not reduced. Their mean is
            trained on.

    Attributes:
        sam: what ``make`` returned, from the first step on.
    """

    def __init__(
        self,
        *args: Any,
        make: Callable[[nn.Module], SAM],
        batches: AUSAMBatchSampler | None = None,
        losses: Callable[[Any, Any], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        if (batches is None) != (losses is None):
            given = "batches" if losses is None else "losses"
            raise TypeError(f"batches, losses: expected both, for AUSAM, or none of them, got only {given}")
        super().__init__(*args, **kwargs)
        self.make, self.batches, self.losses = make, batches, losses
        self.sam: SAM | None = None
        self._kept: list[Any] = []  # micro-batches of this step
        self._records: list[tuple[Tensor, Tensor]] = []  # index and losses, of this pass over them
        self._state: dict[str, Any] | None = None  # of a checkpoint, until there is a `sam`
        if batches is not None:
            if batches.batch_size != self.args.train_batch_size:
                raise ValueError(
                    f"batches: expected batches of args.train_batch_size = {self.args.train_batch_size}, got "
                    f"{batches.batch_size}"
                )
            self.model_accepts_loss_kwargs = False  # the mean over a micro-batch is to be divided
            batches.adlp.to(self.args.device)
            batches.rank, batches.num_replicas = self.args.process_index, self.args.world_size
            self.add_callback(_Epochs(batches))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """A micro-batch, and after the last of a step the second pass over all of them."""
        if self.sam is None or self.sam.model is not model:
            self.sam = self._make(model)
        self._kept.append(inputs)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            kept, self._kept = self._kept, []
            first, self._records = self._records, []
            if isinstance(self.sam, ScheduledSAM) and not self.sam.decide():
                self.sam.reuse_()
                return loss
            with self.sam.perturbed():
                for i, micro_batch in enumerate(kept):
                    last = i == len(kept) - 1
                    with nullcontext() if last else self.accelerator.no_sync(model):
                        super().training_step(model, micro_batch, num_items_in_batch)
            second, self._records = self._records, []
            if self.batches is not None:
                index, values = (torch.cat(parts) for parts in zip(*first, strict=True))
                _, perturbed = (torch.cat(parts) for parts in zip(*second, strict=True))
                self.batches.adlp.update(index, values, perturbed, skip=self.sam.overflow)
        return loss

    def _make(self, model: nn.Module) -> SAM:
        self._kept, self._records = [], []  # an earlier run may have been interrupted
        sam = self.make(model)
        if not isinstance(sam, SAM):
            raise TypeError(f"make: expected it to return a SAM or VSAM, got {sam!r}")
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.is_enabled() and sam.scaler is not scaler:
            raise TypeError(
                "make: with fp16=True expected a SAM that knows the scaler, as by SAM(model, "
                f"scaler=trainer.accelerator.scaler), got one with scaler={sam.scaler}"
            )
        if self._state is not None and isinstance(sam, ScheduledSAM):
            sam.load_state_dict(self._state)
        self._state = None
        return sam

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.losses is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        index = inputs.pop(_INDEX, None)  # None when it evaluates
        outputs = model(**inputs)
        losses = self.losses(outputs, inputs.get("labels"))
        if index is not None:
            checks.per_sample(losses, index)
            self._records.append((index, losses.detach()))
        return (losses.mean(), outputs) if return_outputs else losses.mean()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """With AUSAM's batches it is not prepared by Accelerate: the sampler shares epochs itself."""
        if self.batches is None:
            return super().get_train_dataloader()
        dataset, collate = self.train_dataset, self.data_collator
        if hasattr(dataset, "column_names"):  # of `datasets`
            dataset = self._remove_unused_columns(dataset, description="training")
        else:
            collate = self._get_collator_with_removed_columns(collate, description="training")
        workers = self.args.dataloader_num_workers
        return DataLoader(
            _Indexed(dataset),
            batch_sampler=self.batches,
            collate_fn=_Collate(collate),
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state: dict[str, Any] = {}
        if isinstance(self.sam, ScheduledSAM):
            state["sam"] = self.sam.state_dict()
        if self.batches is not None:
            state["adlp"] = self.batches.adlp.state_dict()
        if self.args.should_save and state:
            torch.save(state, os.path.join(output_dir, _FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = os.path.join(checkpoint or "", _FILE)
        if checkpoint is None or not os.path.exists(path):
            return
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        if self.batches is not None:
            self.batches.adlp.load_state_dict(state["adlp"])
        self.sam, self._state = None, state.get("sam")


class _Epochs(TrainerCallback):
    """Tells the sampler what the ``Trainer`` tells no batch sampler."""

    def __init__(self, batches: AUSAMBatchSampler) -> None:
        self.batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches.set_epoch(int(state.epoch))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            self.batches.adlp.sync()


class _Indexed(Dataset[tuple[int, Any]]):
    """Samples with their place in the data set, which stays right if a run is resumed within an epoch."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[int, Any]:
        return i, self.dataset[i]

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Any]]:
        of_all = getattr(self.dataset, "__getitems__", None)
        items = of_all(indices) if of_all else [self.dataset[i] for i in indices]
        return list(zip(indices, items, strict=True))


class _Collate:
    """Adds the places to what the collator makes of the samples."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, pairs: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        batch = self.collate([item for _, item in pairs])
        return {**batch, _INDEX: torch.tensor([i for i, _ in pairs])}
