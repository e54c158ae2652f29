"""InfoBatch: epochs that leave out a part of what is learned well, and weights that make up for it.

Every sample has a score ``s_i``: its last loss, and 3 before it has one. In epoch ``E < delta * epochs``::

    W = {i: s_i < mean(s)},  m = |W|
    keep floor((1 - r) * m) of W, drawn without replacement, with weight omega_i = 1 / (1 - r)
    keep all others, with weight 1; shuffle
    loss of a batch = mean over its samples of omega_i * l_i;  then s_i <- l_i

Later epochs have all samples, with weight 1. Over the draws, the sum of ``omega_i * l_i`` has the mean
``sum l_i`` over the data set, but for what ``floor`` takes.

Cost: that of the method which trains on the batches, SAM or another, times ``1 - r * m / num_samples``.

Source: Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning" (ICLR 2024, arXiv
2303.04947). The official ``update()`` weighs the losses too, goes by the batch that was drawn last, and sends
index and losses to other processes in one tensor of the losses' dtype, whose half precision rounds an index.
Here the index is an argument, and processes exchange once an epoch.
"""

import math

import torch
from torch import Tensor

from .. import checks
from .pruning import PruningBatchSampler


class InfoBatchSampler(PruningBatchSampler):
    """Batches of what InfoBatch keeps in each epoch, and their weights.

    ::

        batches = InfoBatchSampler(len(train_set), batch_size=128, epochs=200)
        loader = DataLoader(train_set, batch_sampler=batches, num_workers=8)
        for epoch in range(200):
            batches.set_epoch(epoch)
            for i, (index, (x, y)) in enumerate(batches.indexed(loader)):
                set_learning_rate((epoch + i / len(batches)) / 200)
                loss = criterion(model(x), y)                     # [n]: reduction="none"
                (batches.weights(index).to(loss.device) * loss).mean().backward()
                with sam.perturbed():                             # without these two lines: SGD
                    criterion(model(x), y).mean().backward()
                optimizer.step(); optimizer.zero_grad()
                batches.update(index, loss)

    Epochs differ in length, and ``len()`` is that of the current one. So let the learning rate go by the
    fraction of the epoch that is done, not by a number of steps.

    The loop is SAM+Info*: the first loss is weighted and gives the scores, and the step goes along a plain
    mean, in which samples that are learned well have too small a part. SAM+Info: the mean of the first pass
    is plain, the second loss is weighted, and ``update`` gets it.

    An epoch is planned when :meth:`set_epoch`, or the end of a loop over :meth:`indexed`, begins it: the one
    time that the host waits for a device. What :meth:`update` gets afterwards is for the next plan, however
    far workers prefetch; keep it out of captured CUDA graphs. A sample takes 20 bytes of memory.

    Processes of ``torch.distributed`` exchange what they recorded when they begin an epoch, which all have to
    do. Others, whose ``rank`` and ``num_replicas`` are given, plan at the first batch; until then each has to
    :meth:`update` with the losses of all.

    Args:
        num_samples: how many the data set has.
        epochs: length of the run.
        ratio: ``r``, from 0 (all are kept) to below 1.
        delta: share of the run in which samples are left out, from 0 to 1.
        batch_size, shuffle, drop_last, seed, rank, num_replicas: as for :class:`ausam_ext.AUSAMBatchSampler`.
    """

    _settings = "batch_size epochs ratio delta shuffle drop_last seed"

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        epochs: int,
        ratio: float = 0.5,
        delta: float = 0.875,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        super().__init__(num_samples, batch_size, shuffle, drop_last, seed, rank, num_replicas)
        self.epochs = checks.integer("epochs", epochs, 1)
        self.ratio = checks.number("ratio", ratio, "a number from 0 to below 1", lambda v: 0 <= v < 1)
        self.delta = checks.number("delta", delta, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        self._start(3.0)

    def _weigh(self, epoch: int, scores: Tensor) -> Tensor:
        weights = torch.ones_like(scores)
        # 1e-6: a product that ought to be a whole number may miss it by its rounding.
        if epoch + 1e-6 < self.delta * self.epochs:
            wide = scores.double()  # so that the mean of equal scores is that score
            low = (wide < wide.mean()).nonzero().squeeze(1)
            kept = math.floor((1 - self.ratio) * len(low) + 1e-6)
            order = torch.randperm(len(low), generator=self._generator("pruning", epoch), device="cpu")
            weights[low] = 0
            weights[low[order[:kept]]] = 1 / (1 - self.ratio)
        return weights
