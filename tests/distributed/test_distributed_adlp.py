"""The table of several processes: its merge, its checkpoint, and what cannot be merged."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed.spawned import run
from helpers import same_bits

from ausam_ext import ADLP, AUSAMBatchSampler

N = 1001


def losses(epoch):
    return torch.rand(N, 2, generator=torch.Generator().manual_seed(epoch)) * 10


def train(adlp, batches, epochs):
    for epoch in epochs:
        batches.set_epoch(epoch)
        for row in batches:
            index = torch.tensor(row)
            adlp.update(index, losses(epoch)[index, 0], losses(epoch)[index, 1])
        adlp.sync()


def _train_and_save(rank, folder):
    adlp = ADLP(N)
    batches = AUSAMBatchSampler(adlp, 10, full_epochs=2)
    assert (batches.rank, batches.num_replicas, len(batches)) == (rank, 3, 34)
    train(adlp, batches, range(2))
    adlp.sync()  # nothing new: nothing changes
    torch.save(adlp.state_dict(), folder / f"{rank}.pt")
    dcp.save({"adlp": adlp}, checkpoint_id=folder / "dcp")
    # One process's file is enough for all, and so is the common one; training goes on as it would have.
    loaded = ADLP(N), ADLP(N)
    loaded[0].load_state_dict(torch.load(folder / "0.pt", weights_only=True))
    dcp.load({"adlp": loaded[1]}, checkpoint_id=folder / "dcp")
    for table in (adlp, *loaded):
        train(table, AUSAMBatchSampler(table, 10, full_epochs=2), range(2, 4))
    for table in loaded:
        assert same_bits(table.total, adlp.total) and torch.equal(table.count, adlp.count)
    torch.save(adlp.state_dict(), folder / f"{rank}-later.pt")


def test_processes_merge_to_the_table_of_one_and_share_a_checkpoint(tmp_path, free_port):
    assert run(_train_and_save, 3, free_port, tmp_path) == [0, 0, 0]
    states = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(3)]
    one = ADLP(N)
    for epoch in range(2):
        one.update(torch.arange(N), losses(epoch)[:, 0], losses(epoch)[:, 1])
    # A sample that one process visited between two merges keeps its sum to the last bit. One of 1,001
    # is there twice in each epoch, as three processes get as many each.
    total, count = states[0]["total"], states[0]["count"]
    once = count == 2
    assert once.sum() >= N - 2 and count.sum() == 2 * (N + 1)
    assert same_bits(total[once], one.total[once])
    for state in states:
        assert state.keys() == states[0].keys()
        assert same_bits(state["total"], total) and torch.equal(state["count"], count)
    later = [torch.load(tmp_path / f"{r}-later.pt", weights_only=True) for r in range(3)]
    assert all(same_bits(state["total"], later[0]["total"]) for state in later)
    assert later[0]["count"].sum() > 2 * (N + 1)


NAN = float("nan")


def _tried(rank, folder):
    adlp = ADLP(5)
    for _ in range(2):  # nothing is added up
        adlp.update(torch.tensor([rank, 2 + rank]), torch.tensor([NAN, 0.0]), torch.ones(2))
        adlp.sync()
        assert adlp.tried.tolist() == [1, 1, 0, 0, 0]
    assert adlp.count.tolist() == [0, 0, 2, 2, 0]
    loaded = ADLP(5)
    loaded.load_state_dict(adlp.state_dict())
    if rank:  # one process tries another sample, and has a finite DLP of the first
        loaded.update(torch.tensor([0, 4]), torch.tensor([0.0, NAN]), torch.ones(2))
    loaded.sync()
    assert loaded.tried.tolist() == [1, 1, 0, 0, 1] and loaded.count.tolist() == [1, 0, 2, 2, 0]


def test_a_sample_that_one_process_tried_is_tried_on_all(tmp_path, free_port):
    assert run(_tried, 2, free_port, tmp_path) == [0, 0]


def _refused(rank, folder):
    with pytest.raises(ValueError, match=r"one length, got \[5, 6\] samples"):
        ADLP(5 + rank).sync()

    adlp = ADLP(5)
    adlp._invalid = torch.zeros((), dtype=torch.int32)  # as on CUDA
    adlp.update(torch.tensor([rank * 5]), torch.zeros(1), torch.ones(1))
    with pytest.raises(IndexError, match="1 entries"):
        adlp.sync()
    assert adlp.count.sum() == 1 - rank
    adlp.sync()  # the processes still wait for one another, and the rest can be merged
    assert adlp.count.tolist() == [1, 0, 0, 0, 0]

    own = ADLP(5)  # each process its own state, saved without a sync()
    own.update(torch.tensor([rank]), torch.zeros(1), torch.ones(1) + rank)
    adlp.load_state_dict(own.state_dict())
    with pytest.raises(ValueError, match="did not begin with the same table"):
        adlp.sync()
    assert adlp.count.tolist() == own.count.tolist()

    early = ADLP(5)
    if rank:
        early._agreed, early._agreed_on_zeros = None, False  # as load_state_dict() leaves it in one process
    with pytest.raises(ValueError, match=r"before torch.distributed was initialised"):
        early.sync()


def test_what_cannot_be_merged_is_an_error_on_every_process(tmp_path, free_port):
    assert run(_refused, 2, free_port, tmp_path) == [0, 0]


def _one_leaves(rank, folder):
    adlp = ADLP(N)
    adlp.sync()
    if rank:
        os._exit(3)
    with pytest.raises(RuntimeError, match=r"a process failed or left.*go on from a checkpoint"):
        adlp.sync()
    os._exit(0)


def test_a_process_that_leaves_is_an_error_on_the_others(tmp_path, free_port):
    assert run(_one_leaves, 2, free_port, tmp_path) == [0, 3]


def test_one_process_has_nothing_to_merge(free_port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port))
    adlp = ADLP(5)
    with pytest.raises(ValueError, match="init_process_group"):
        adlp.sync()
    dist.init_process_group("gloo", rank=0, world_size=1)
    try:
        adlp.load_state_dict(ADLP(5).state_dict())
        adlp.update(torch.tensor([1]), torch.zeros(1), torch.ones(1))
        adlp.sync()
        assert adlp.count.tolist() == [0, 1, 0, 0, 0] and adlp._agreed is None
    finally:
        dist.destroy_process_group()
