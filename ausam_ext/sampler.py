"""AUSAM's choice of samples, made before they are loaded."""

import warnings
from collections.abc import Iterator
from numbers import Integral

import torch
from torch import Tensor

from . import checks, ops
from .adlp import ADLP
from .importance import Choice, HandedOut, Race, columns, number_kept, scores
from .planned import PlannedBatchSampler

_PLAN_BLOCK = 1 << 20  # samples whose batches are planned at once; bounds a plan's memory to some 50 MB
_NOISE_BLOCK = 1 << 13  # samples whose noise is drawn at once


class AUSAMBatchSampler(PlannedBatchSampler):
    """Cuts each epoch into batches of ``K``, keeps the ``alpha * K`` samples of each that matter most (Alg.
    1).

    ::

        batches = AUSAMBatchSampler(adlp, batch_size=128, alpha=0.5)
        loader = DataLoader(train_set, batch_sampler=batches, num_workers=8)
        for epoch in range(epochs):
            batches.set_epoch(epoch)
            for index, (x, y) in batches.indexed(loader):
                ...

    An epoch is planned on the device of the table, about a million samples at a time, as the loader asks for
    them: neither memory nor time per batch depend on the size of the data set. A process visits a sample at
    most once an epoch, and its score changes only then, so that the plan is exactly the choice made batch by
    batch, however far workers prefetch. Of a batch of ``n`` samples ``floor(alpha * n + 1e-6)`` are drawn
    without replacement (Eq. 7, 8), but two at least, or BatchNorm would refuse what is left of a short last
    batch (one of a batch of one). ``s_max`` rises linearly from ``s_min`` in epoch 0 to its value in epoch
    ``warmup_epochs``: at the default of 30, a run of 10 epochs ends with 3/10 of the way.

    Args:
        adlp: the table; its length is that of the data set.
        batch_size: ``K``, before the choice; with several processes, of each.
        alpha: share that is kept, above 0 and at most 1.
        s_min, s_max: weights of the lowest and the highest score of a batch, ``0 < s_min <= s_max`` (Eq. 8).
        warmup_epochs: ``E_start``, the first epoch that has ``s_max``: a number of epochs, or, with
            ``epochs``, a share of the run above 0 and below 1, such as 0.3. Set it for runs of 30 epochs or
            fewer.
        full_epochs: epochs at the start that keep whole batches, so that every sample has a score.
        shuffle: a new permutation of the data set every epoch; otherwise in order.
        drop_last: leave out the last batch if it is shorter.
        seed: of permutations and choices, which depend only on it, the epoch and the batch.
        rank, num_replicas: this process and their number; by default those of ``torch.distributed``, if that
            is initialised. Each process gets every ``num_replicas``-th sample; some are repeated to make that
            even.
        epochs: length of the run, for ``warmup_epochs``; warns if the run is to end before that epoch.
    """

    _state_version = 3
    _instead = (
        " If no batch sampler can be used, let the data set yield each sample's index too, and choose within "
        "the loop with select()"
    )

    def __init__(
        self,
        adlp: ADLP,
        batch_size: int,
        alpha: float = 0.5,
        *,
        s_min: float = 0.1,
        s_max: float = 1.0,
        warmup_epochs: float = 30,
        full_epochs: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
        epochs: int | None = None,
    ) -> None:
        if not isinstance(adlp, ADLP):
            raise TypeError(f"adlp: expected an ausam_ext.ADLP, got {type(adlp).__name__}")
        super().__init__(len(adlp), batch_size, shuffle, drop_last, seed, rank, num_replicas)
        self.adlp = adlp
        self.alpha = checks.number("alpha", alpha, "a number above 0 and at most 1", lambda v: 0 < v <= 1)
        self.s_min, self.s_max = checks.weight_bounds(s_min, s_max)
        self.epochs = None if epochs is None else checks.integer("epochs", epochs, 1)
        self.warmup_epochs = self._ramp(warmup_epochs)
        self.full_epochs = checks.integer("full_epochs", full_epochs, 0)
        self._noise_block: tuple[tuple[int, int], Tensor] | None = None

    def _ramp(self, warmup_epochs: float) -> float:
        """``E_start`` in epochs."""
        if isinstance(warmup_epochs, Integral):
            value: float = checks.integer("warmup_epochs", warmup_epochs, 0)
            if self.epochs is not None and value >= self.epochs:
                warnings.warn(
                    f"AUSAMBatchSampler: s_max is reached in epoch warmup_epochs = {value}, and the run ends "
                    f"after {self.epochs}; give a share of it, such as warmup_epochs=0.3",
                    stacklevel=3,
                )
            return value
        accepted = "a number of epochs, or a share of the run above 0 and below 1"
        value = checks.number("warmup_epochs", warmup_epochs, accepted, lambda v: 0 < v < 1)
        if self.epochs is None:
            raise ValueError(f"epochs: expected the length of the run, for warmup_epochs = {value}, got None")
        return value * self.epochs

    def __repr__(self) -> str:
        settings = "batch_size alpha s_min s_max warmup_epochs full_epochs shuffle drop_last seed"
        return self._described(self.adlp, settings)

    @property
    def current_s_max(self) -> float:
        """``s_max`` of this epoch, on its way from ``s_min``."""
        return self._s_max(self.epoch)

    @property
    def _device(self) -> torch.device:
        return self.adlp.device

    def _recordings(self) -> int:
        return self.adlp.total._version

    def select(self, index: Tensor) -> Tensor:
        """The same choice for the next batch, within the loop: for loaders that take no batch sampler.

        ::

            keep = batches.select(index)
            index, x, y = index[keep], x[keep], y[keep]

        Args:
            index: ``[n]``, int32 or int64, ``1 <= n <= batch_size``: the samples of the batch.

        Returns:
            Positions in ``index``, ascending, int64, on the table's device.

        Raises:
            RuntimeError: inside a loop over :meth:`indexed`, whose batches are chosen already.

        Warns if :meth:`set_epoch` seems to be missing, without which whole batches are kept in all epochs.
        """
        if self._current is not None:
            raise RuntimeError(
                "select(): inside a loop over indexed(), whose batches are chosen already; use one of both"
            )
        if (
            self._position == len(self) and self.epoch < self.full_epochs and not self._epoch_was_set
        ):  # a loop that does set it may draw more than there are samples
            warnings.warn(
                f"select(): call {self._position + 1} in epoch {self.epoch}, which keeps every batch whole; "
                "call set_epoch() at the beginning of each epoch",
                stacklevel=2,
            )
        index = self.adlp.place(checks.tensor("index", index, checks.INDEX, dim=1))
        checks.integer("len(index)", index.numel(), 1, self.batch_size, "batch_size =")
        race = self._race(len(index), self.epoch, self._position, 1)
        choice = None
        if race is None:
            self.adlp.look_for_outside(index)  # no score is looked up
            keep = torch.arange(len(index), dtype=torch.int64, device=index.device)
        else:
            race = race._replace(noise=race.noise[0])
            keep = self.adlp.sample(index, race.k, s_min=race.s_min, s_max=race.s_max, noise=race.noise)
            # What is outside was counted, or refused, and must not fault.
            inside = index if index.device.type == "cpu" else index.clamp(0, len(self.adlp) - 1)
            choice = Choice(race, keep, columns(self.adlp, inside))
        self._position += 1
        self._handed = HandedOut(index, choice, keep=keep)
        return keep

    def weights(self, index: Tensor, *, normalize: bool = True) -> Tensor:
        """Importance weights of the samples that :meth:`indexed` or :meth:`select` handed out last.

        ::

            (loss * batches.weights(index)).mean().backward()   # in both passes; ADLP gets the plain losses

        What is kept of a batch is no fair sample of it: high scores are in it more often than others.
        With ``w_i = (k/n) / (1 - exp(-s_i / t))``, where ``s`` are the weights of Eq. 8 and ``t`` is the
        largest ``s / noise`` that was not kept, the mean of ``w_i * loss_i`` is an unbiased estimate of the
        whole batch's mean loss, and its gradient one of the batch's gradient. Scores and noise are those that
        chose the batch, also after ``ADLP.update``.

        Args:
            index: ``[k]``: as :meth:`indexed` gave it; after ``select``, ``index[keep]``.
            normalize: divide them by their mean: a little bias, and less variance.

        Returns:
            ``[k]``, float32, on the table's device, in the order of ``index``; ones for a whole batch.
            Computed for a million samples at a time, once someone asks.

        Raises:
            TypeError: ``index`` is no such tensor.
            ValueError: ``index`` is another batch, such as the one before. (On CUDA, and not the tensor that
                :meth:`indexed` gave: entries of another batch weigh NaN, as to raise would be to
                synchronise.)
            RuntimeError: no batch was handed out.
        """
        checks.flag("normalize", normalize)
        if self._handed is None:
            raise RuntimeError("weights(): neither indexed() nor select() has handed out a batch")
        return self._handed.weights(self.adlp.place(index), normalize)

    def _plan(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Choice | None]]:
        for start, candidates in self._blocks(epoch, first, _PLAN_BLOCK):
            self.adlp.check()
            rows, n = candidates.shape
            race = self._race(n, epoch, start, rows)
            if race is None:
                yield candidates, None
                continue
            self._warn_without_scores(epoch)
            # Not the fused adlp_sample: the weights need the scores.
            known = columns(self.adlp, candidates.flatten())
            of_rows, noise = scores(*known).view(rows, n), race.noise
            keep = ops.subset_sample(of_rows, race.k, s_min=race.s_min, s_max=race.s_max, noise=noise)
            yield candidates.gather(1, keep), Choice(race, keep, known)

    def _warn_without_scores(self, epoch: int) -> None:
        if epoch <= self.full_epochs or self.s_min == self.s_max or self._recordings():
            return
        if not self.adlp.count.any():  # one that was copied has scores and no recordings
            warnings.warn(
                f"AUSAMBatchSampler: no score was recorded before epoch {epoch}, and the choice is random; "
                "call adlp.update(index, loss, loss_perturbed) after each step",
                stacklevel=2,
            )

    def _race(self, n: int, epoch: int, first: int, rows: int) -> Race | None:
        """How many of ``n`` candidates the batches from ``first`` on keep, and how; None if all."""
        k = number_kept(n, self.alpha)
        if epoch < self.full_epochs or k == n:
            return None
        return Race(k, self.s_min, self._s_max(epoch), self._noise(epoch, first, rows)[:, :n])

    def _s_max(self, epoch: int) -> float:
        ramp = min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else 1.0
        return self.s_min + ramp * (self.s_max - self.s_min)

    def _noise(self, epoch: int, first: int, rows: int) -> Tensor:
        """Exp(1), ``[rows, batch_size]``, for the batches from ``first`` on; drawn alike for all devices."""
        at_once = max(1, min(_NOISE_BLOCK // self.batch_size, len(self)))
        blocks = range(first // at_once, (first + rows - 1) // at_once + 1)
        start = first - blocks[0] * at_once
        return torch.cat([self._draw_noise(epoch, b, at_once) for b in blocks])[start : start + rows]

    def _draw_noise(self, epoch: int, block: int, rows: int) -> Tensor:
        key = (epoch, block)
        if self._noise_block is None or self._noise_block[0] != key:
            noise = torch.empty(rows, self.batch_size, dtype=torch.float32, device="cpu")
            noise.exponential_(generator=self._generator("choice", epoch, block, self.rank))
            if self.adlp.device.type == "cuda":
                noise = noise.pin_memory()  # else the copy would wait for the device
            self._noise_block = (key, noise.to(self.adlp.device, non_blocking=True))
        return self._noise_block[1]
