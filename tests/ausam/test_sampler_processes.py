"""AUSAMBatchSampler in several processes: together they share each epoch."""

import math

import pytest
from ausam.tables import epoch_of, scored
from torch.utils.data.distributed import DistributedSampler

from ausam_ext import ADLP, AUSAMBatchSampler


@pytest.mark.parametrize("n", [10, 203, 7])
@pytest.mark.parametrize("replicas", [2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_an_epoch(n, replicas, drop_last):
    options = {"batch_size": 3, "num_replicas": replicas, "drop_last": drop_last, "seed": 2}
    parts = [AUSAMBatchSampler(scored(n), rank=r, **options) for r in range(replicas)]
    epochs = [epoch_of(p, 0) for p in parts]
    assert len({len(rows) for rows in epochs}) == 1  # alike: no process waits for another
    assert len(epochs[0]) == len(parts[0])
    flat = [i for rows in epochs for row in rows for i in row]
    if not drop_last:
        assert set(flat) == set(range(n)) and len(flat) == math.ceil(n / replicas) * replicas
    for rows in epochs:
        assert len({i for row in rows for i in row}) == sum(len(row) for row in rows)  # repeated elsewhere


@pytest.mark.parametrize("n", [203, 64, 65, 97])
@pytest.mark.parametrize("replicas", [2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_of_all_processes_are_of_one_length(n, replicas, drop_last):
    """What they keep as well: collective operations in the loop fit each other."""
    options = {"batch_size": 8, "num_replicas": replicas, "drop_last": drop_last, "full_epochs": 1}
    parts = [AUSAMBatchSampler(scored(n), rank=r, **options) for r in range(replicas)]
    for epoch in range(2):
        lengths = [[len(row) for row in epoch_of(p, epoch)] for p in parts]
        assert lengths[0] and all(other == lengths[0] for other in lengths)
        assert len(lengths[0]) == len(parts[0])


@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_together_processes_take_the_batches_of_one(replicas):
    """Batch j of all is batch j of one process with as many times the batch size."""
    n = 8 * replicas * 5
    one = epoch_of(AUSAMBatchSampler(ADLP(n), 8 * replicas), 0)
    parts = [
        epoch_of(AUSAMBatchSampler(ADLP(n), 8, rank=r, num_replicas=replicas), 0) for r in range(replicas)
    ]
    for batch, rows in zip(one, zip(*parts, strict=True), strict=True):
        assert [i for together in zip(*rows, strict=True) for i in together] == batch


@pytest.mark.parametrize("n", [1, 7, 64, 203])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_in_order_each_process_gets_what_distributed_sampler_gives(n, replicas):
    for rank in range(replicas):
        batches = AUSAMBatchSampler(ADLP(n), 8, shuffle=False, rank=rank, num_replicas=replicas)
        expected = DistributedSampler(range(n), replicas, rank, shuffle=False)
        assert [i for row in batches for i in row] == list(expected)


def test_more_processes_than_samples():
    parts = [AUSAMBatchSampler(ADLP(2), 4, rank=r, num_replicas=5) for r in range(5)]
    assert {len(epoch_of(p, 0)) for p in parts} == {1}
