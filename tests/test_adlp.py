"""The ADLP table: means over visits, checkpoints, and the merge of several processes."""

import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist
from helpers import same_bits

from ausam_ext import ADLP, AUSAMBatchSampler


def test_mean_over_visits(backend):
    adlp = ADLP(5)
    adlp.update(torch.tensor([0, 3]), torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.0]))
    adlp.update(torch.tensor([3, 3]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, float("inf")]))
    assert adlp.count.tolist() == [1, 0, 0, 2, 0] and adlp.total.tolist() == [0.5, 0, 0, 3.0, 0]
    mean = adlp.mean()
    assert (
        mean.dtype == torch.float32 and mean[[0, 3]].tolist() == [0.5, 1.5] and mean[[1, 2, 4]].isnan().all()
    )
    assert torch.equal(adlp.mean(torch.tensor([[3, 0]], dtype=torch.int32)), torch.tensor([[1.5, 0.5]]))
    assert len(adlp) == 5 and repr(adlp) == "ADLP(5, device='cpu')"


def test_losses_of_a_graph_leave_no_graph(backend):
    adlp = ADLP(3)
    loss = torch.ones(2, requires_grad=True)
    adlp.update(torch.tensor([0, 1]), loss * 2, loss * 3)
    assert not adlp.total.requires_grad and adlp.total.tolist() == [1, 1, 0]


def test_an_index_outside_is_an_error_before_anything_is_written(backend):
    adlp = ADLP(3)
    with pytest.raises(IndexError, match="index: 3 is outside the table of 3 samples"):
        adlp.update(torch.tensor([0, 3]), torch.zeros(2), torch.ones(2))
    with pytest.raises(IndexError, match="-1"):
        adlp.mean(torch.tensor([-1]))
    assert adlp.count.sum() == 0 and adlp.total.sum() == 0


def test_counted_indices_are_reported_once_at_the_next_check(backend):
    """What a table on CUDA does, where raising at once would be a synchronisation."""
    adlp = ADLP(3)
    adlp._invalid = torch.zeros((), dtype=torch.int32)
    adlp.update(torch.tensor([0, 3, -1]), torch.zeros(3), torch.ones(3))
    assert adlp.count.tolist() == [1, 0, 0]
    with pytest.raises(IndexError, match="2 entries"):
        adlp.state_dict()
    adlp.state_dict()


@pytest.mark.parametrize(
    ("index", "error"),
    [([0], TypeError), (torch.tensor([0.0]), TypeError), (torch.tensor([[0]]), ValueError)],
)
def test_bad_index(index, error):
    with pytest.raises(error, match="index"):
        ADLP(3).update(index, torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_bad_size(n, error):
    with pytest.raises(error, match=f"num_samples: .*{n}"):
        ADLP(n)


def test_state_goes_through_a_file(tmp_path):
    a, b = ADLP(4), ADLP(4)
    a.update(torch.tensor([0, 2]), torch.zeros(2), torch.tensor([0.1, 0.7]))
    torch.save(a.state_dict(), tmp_path / "adlp.pt")
    b.load_state_dict(torch.load(tmp_path / "adlp.pt", weights_only=True))
    assert same_bits(a.total, b.total) and torch.equal(a.count, b.count)
    a.update(torch.tensor([0]), torch.zeros(1), torch.ones(1))
    assert b.count.tolist() == [1, 0, 1, 0]  # a copy


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"total": torch.zeros(5), "count": torch.zeros(5, dtype=torch.int32)},
            ValueError,
            r"4 samples.*\(5,\)",
        ),
        ({"version": 99}, ValueError, "version: .*99"),
        ({"count": None}, KeyError, "count"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, error, message):
    adlp = ADLP(4)
    adlp.update(torch.tensor([1]), torch.zeros(1), torch.ones(1))
    state = {**ADLP(4).state_dict(), **change}
    state = {k: v for k, v in state.items() if v is not None}
    with pytest.raises(error, match=message):
        adlp.load_state_dict(state)
    assert adlp.count.tolist() == [0, 1, 0, 0]


def _process(rank, port, out):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    adlp = ADLP(1000)
    batches = AUSAMBatchSampler(adlp, 10)
    assert (batches.rank, batches.num_replicas, len(batches)) == (rank, 2, 50)
    generator = torch.Generator().manual_seed(0)
    for _epoch in range(4):
        order = torch.randperm(1000, generator=generator)  # alike on both
        losses = torch.rand(1000, 2, generator=generator) * 10
        mine = order[rank::2]
        adlp.update(mine, losses[mine, 0], losses[mine, 1])
        adlp.sync()
    if rank == 1:
        adlp.update(torch.tensor([0, 0]), torch.zeros(2), torch.ones(2))
    else:
        adlp.update(torch.tensor([0]), torch.zeros(1), torch.ones(1))
    adlp.sync()
    adlp.sync()  # nothing new: nothing changes
    torch.save(adlp.state_dict(), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_merge_to_the_table_of_one(tmp_path, free_port):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(r, free_port, str(tmp_path))) for r in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(60)
        assert p.exitcode == 0
    one = ADLP(1000)
    generator = torch.Generator().manual_seed(0)
    for _epoch in range(4):
        order = torch.randperm(1000, generator=generator)
        losses = torch.rand(1000, 2, generator=generator) * 10
        one.update(order, losses[order, 0], losses[order, 1])
    one.update(torch.tensor([0, 0, 0]), torch.zeros(3), torch.ones(3))
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        # A sample that one process visited between two merges keeps its sum to the last bit.
        assert same_bits(state["total"][1:], one.total[1:]) and torch.equal(state["count"], one.count)
        torch.testing.assert_close(state["total"][0], one.total[0])
