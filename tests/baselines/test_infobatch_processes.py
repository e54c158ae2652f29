"""InfoBatchSampler in several processes: all of the run agrees on what an epoch has."""

import copy
import math

import pytest
import torch
from ausam.tables import N, dataset
from baselines.pruned import ALL, epoch_of, losses_of, samples, scored, stored, weights
from distributed.spawned import run as run_processes
from helpers import assert_same_state
from torch.utils.data import DataLoader

from ausam_ext.baselines import InfoBatchSampler


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_processes_cover_each_epoch(world, shuffle, seed):
    """Of given rank, in one process here: each is given the losses of all, between its epochs."""
    options = {"shuffle": shuffle, "seed": seed, "batch_size": 8}
    one = InfoBatchSampler(N, epochs=200, **options)
    processes = [InfoBatchSampler(N, epochs=200, rank=r, num_replicas=world, **options) for r in range(world)]
    for epoch in range(4):
        for batches in (one, *processes):
            batches.set_epoch(epoch)
        whole, shares = samples(one), [samples(batches) for batches in processes]
        assert {len(share) for share in shares} == {math.ceil(len(whole) / world)}
        dealt = [i for of_all in zip(*shares, strict=True) for i in of_all]
        assert dealt == (whole + whole)[: len(dealt)]  # what is repeated makes it even
        for batches in (one, *processes):
            assert weights(batches) == weights(one)
            for i in whole:
                batches.update(torch.tensor([i]), losses_of(epoch)[[i]])
    assert len(whole) < N


def test_losses_of_other_processes_that_are_missing_are_an_error():
    """After the loop over an epoch there is still time for them."""
    batches = InfoBatchSampler(N, 16, epochs=9, rank=1, num_replicas=2)
    own = [
        i for _, index, _ in epoch_of(batches, DataLoader(dataset(), batch_sampler=batches), 0) for i in index
    ]
    assert batches.epoch == 1
    for use in (len, list, weights):
        with pytest.raises(RuntimeError, match="losses of all 2 processes"):
            use(batches)
    others = ALL[~torch.isin(ALL, torch.tensor(own))]
    batches.update(others, losses_of(0)[others])
    one = scored(batch_size=16, epochs=9)
    one.set_epoch(1)
    assert weights(batches) == weights(one)


def test_processes_that_were_given_the_losses_of_all_may_share_a_state():
    one, other = (scored(batch_size=16, rank=r, num_replicas=2) for r in range(2))
    loop = iter(one.indexed(DataLoader(dataset(), batch_sampler=one)))
    next(loop)
    other.load_state_dict(stored(one.state_dict()))
    assert len(list(other)) == len(list(one)) == len(one) - 1
    for batches in (one, other):
        batches.set_epoch(1)
    assert weights(other) == weights(one)


def test_processes_that_need_no_losses_of_others():
    """Nothing was recorded yet, or one sample is all there is."""
    batches = InfoBatchSampler(N, 16, epochs=9, rank=1, num_replicas=2)
    batches.set_epoch(1)
    assert len(samples(batches)) == math.ceil(N / 2)
    batches = InfoBatchSampler(1, 16, epochs=9, rank=1, num_replicas=2)
    batches.update(torch.tensor([0]), torch.ones(1))
    batches.set_epoch(1)
    assert samples(batches) == [0]


def _train_in_a_group(rank, folder):
    batches = InfoBatchSampler(N, 16, epochs=10, seed=5)
    assert (batches.rank, batches.num_replicas) == (rank, 2)
    loader = DataLoader(dataset(), batch_sampler=batches)
    seen = [epoch_of(batches, loader, epoch) for epoch in range(3)]
    # At an epoch's beginning one state is enough for all, within an epoch each has its own.
    torch.save((seen, batches.state_dict()), folder / f"{rank}.pt")
    torch.distributed.barrier()
    resumed = InfoBatchSampler(N, 16, epochs=10, seed=5)
    resumed.load_state_dict(torch.load(folder / "0.pt", weights_only=True)[1])
    assert list(resumed) == list(batches)
    loop = iter(batches.indexed(loader))
    for _ in range(3):
        index, _ = next(loop)
        batches.update(index, losses_of(3)[index])
    torch.save(batches.state_dict(), folder / f"{rank}-within.pt")
    torch.distributed.barrier()
    with pytest.raises(ValueError, match=f"rank: expected {1 - rank}.*got {rank}"):
        resumed.load_state_dict(torch.load(folder / f"{1 - rank}-within.pt", weights_only=True))
    resumed.load_state_dict(torch.load(folder / f"{rank}-within.pt", weights_only=True))
    rests = [epoch_of(b, DataLoader(dataset(), batch_sampler=b), 3) for b in (batches, resumed)]
    assert rests[0] == rests[1]
    assert_same_state(batches.state_dict(), resumed.state_dict())

    if rank:
        resumed._losses._recorded[-1] = 0.0  # as on CUDA, after an index outside the table
    with pytest.raises(IndexError, match=f"update.. was given were outside.*0 <= index < {N}"):
        resumed.set_epoch(9)
    resumed.set_epoch(9)  # it was told
    batches.set_epoch(9)
    assert list(resumed) == list(batches)

    for other in (
        InfoBatchSampler(N, 16, epochs=10, ratio=0.5 + rank / 4),
        InfoBatchSampler(N, 16 + rank, epochs=10),
        InfoBatchSampler(N + rank, 16, epochs=10),
        copy.deepcopy(batches)
        if rank
        else InfoBatchSampler(N, 16, epochs=10, seed=5),  # only one loaded a state
    ):
        with pytest.raises(ValueError, match="same epoch, settings and scores"):
            other.set_epoch(8)
    with pytest.raises(ValueError, match="same epoch"):
        InfoBatchSampler(N, 16, epochs=10).set_epoch(1 + rank)
    of_one_process = scored(batch_size=16, epochs=10, rank=0, num_replicas=1, seed=5)
    resumed.load_state_dict(of_one_process.state_dict())
    resumed.set_epoch(1)
    of_one_process.set_epoch(1)
    assert weights(resumed) == weights(of_one_process)

    # Each its own run: of one sample below the mean, half is none.
    alone = InfoBatchSampler(N, 16, epochs=10, rank=0, num_replicas=1)
    alone.update(ALL[[rank]], torch.ones(1))
    alone.set_epoch(1)
    assert weights(alone) == [float(i != rank) for i in range(N)]


def test_a_group_of_processes_exchanges_its_losses(tmp_path, free_port):
    assert run_processes(_train_in_a_group, 2, free_port, tmp_path) == [0, 0]
    seen, states = zip(*[torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)], strict=True)
    one = InfoBatchSampler(N, 16, epochs=10, seed=5)
    for epoch in range(3):
        one.set_epoch(epoch)
        shares = [[i for _, index, _ in of_rank[epoch] for i in index] for of_rank in seen]
        assert len(shares[0]) == len(shares[1]) == math.ceil(len(samples(one)) / 2)
        assert sorted({*shares[0], *shares[1]}) == sorted(samples(one))
        weight = weights(one)
        for _, index, of_batch in seen[0][epoch] + seen[1][epoch]:
            assert of_batch == [weight[i] for i in index]
        index = torch.tensor(samples(one))
        one.update(index, losses_of(epoch)[index])
    one.set_epoch(3)
    for state in states:
        for name in ("scores", "weights"):
            assert torch.equal(state[name], one.state_dict()[name])
