"""What InfoBatchSampler takes and what it refuses: arguments, losses, indices, loaders."""

import copy
import math

import pytest
import torch
from ausam.tables import N, dataset
from baselines.pruned import ALL, losses_of, samples, within_an_epoch
from helpers import assert_same_state
from torch.utils.data import DataLoader

from ausam_ext.baselines import InfoBatchSampler


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples: expected an integer at least 1, got 0"),
        ({"num_samples": "a"}, TypeError, "num_samples: expected an integer"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"epochs": 0}, ValueError, "epochs: expected an integer at least 1, got 0"),
        ({"epochs": None}, TypeError, "epochs"),
        ({"ratio": 1.0}, ValueError, "ratio: expected a number from 0 to below 1, got 1.0"),
        ({"ratio": -0.1}, ValueError, "ratio"),
        ({"delta": 1.1}, ValueError, "delta: expected a number from 0 to 1, got 1.1"),
        ({"delta": math.nan}, ValueError, "delta"),
        ({"rank": 2, "num_replicas": 2}, ValueError, "rank"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_arguments_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        InfoBatchSampler(**{"num_samples": 9, "batch_size": 2, "epochs": 5, **options})


@pytest.mark.parametrize(
    ("index", "loss", "error", "message"),
    [
        ([0, 1], torch.ones(2), TypeError, "index: expected a tensor"),
        (torch.ones(2), torch.ones(2), TypeError, "index: expected a tensor of int64 or int32"),
        (torch.tensor([[0, 1]]), torch.ones(1, 2), ValueError, r"index: expected 1 dimension"),
        (torch.tensor([0, 1]), torch.ones(2).long(), TypeError, "loss: expected a tensor of float32"),
        (
            torch.tensor([0, 1]),
            torch.ones(2).mean(),
            ValueError,
            r'loss: expected one for each.*reduction="none"',
        ),
        (torch.tensor([0, 1]), torch.ones(3), ValueError, "loss: expected one for each.*another batch"),
        (torch.tensor([0, N]), torch.ones(2), IndexError, f"index: {N} is outside the table of {N}"),
        (torch.tensor([-1, 1]), torch.ones(2), IndexError, "index: -1 is outside"),
    ],
)
def test_losses_that_do_not_fit_change_nothing(index, loss, error, message):
    batches = within_an_epoch()
    before = copy.deepcopy(batches.state_dict())
    with pytest.raises(error, match=message):
        batches.update(index, loss)
    assert_same_state(batches.state_dict(), before)


def test_weights_of_what_is_no_sample():
    batches = within_an_epoch()
    for index, error in (([0], TypeError), (torch.ones(1), TypeError), (torch.tensor([N]), IndexError)):
        with pytest.raises(error, match="index: "):
            batches.weights(index)


def test_an_index_outside_the_table_on_another_device():
    """There it is noticed when the next epoch is planned, and nothing faults or is written: here as if."""
    batches = within_an_epoch()
    before = batches.state_dict()["recorded"].clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ausam_ext.checks.inside", lambda *args: None)
        batches.update(torch.tensor([-7, N + 7]), torch.tensor([1.0, math.nan]))
        assert batches.weights(torch.tensor([-7, N + 7])).isnan().all()
    torch.testing.assert_close(batches.state_dict()["recorded"], before, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(IndexError, match=rf"outside the table, and were skipped; expected 0 <= index < {N}"):
        batches.set_epoch(2)
    batches.set_epoch(2)  # it was told, and the rest counts
    assert len(samples(batches)) < N
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ausam_ext.checks.inside", lambda *args: None)
        batches.update(torch.tensor([N + 7]), torch.tensor([math.nan]))
    with pytest.raises(IndexError, match="outside the table"):
        batches.set_epoch(3)


def test_what_it_says_of_itself_and_of_a_loader():
    batches = InfoBatchSampler(N, 16, epochs=9)
    assert repr(batches).startswith(
        f"InfoBatchSampler({N}, batch_size=16, epochs=9, ratio=0.5, delta=0.875, "
    )
    with pytest.raises(ValueError, match="batch_sampler= this sampler") as caught:
        batches.indexed(DataLoader(dataset(), batch_size=16))
    assert "select()" not in str(caught.value)  # which it does not have
    with pytest.raises(ValueError, match=f"expected a data set of {N} samples.*got {N - 1}"):
        batches.indexed(DataLoader(dataset(N - 1), batch_sampler=batches))
    loader = DataLoader(dataset(), batch_sampler=batches)
    list(loader)
    batches.update(ALL, losses_of(0))
    with pytest.warns(UserWarning, match="InfoBatchSampler: epoch 0 begins once more"):
        list(loader)
