"""What AUSAMBatchSampler takes and what it refuses: arguments, indices, loaders, epochs."""

import copy
import math

import numpy as np
import pytest
import torch
from ausam.tables import N, dataset, epoch_of, scored
from torch.utils.data import DataLoader

from ausam_ext import ADLP, AUSAMBatchSampler


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"warmup_epochs": 0.3}, ValueError, r"epochs: expected the length of the run, .* got None"),
        ({"warmup_epochs": 1.0, "epochs": 10}, ValueError, "warmup_epochs: expected a number of epochs"),
        ({"warmup_epochs": 0.0, "epochs": 10}, ValueError, "warmup_epochs: .* got 0.0"),
        ({"warmup_epochs": math.nan, "epochs": 10}, ValueError, "warmup_epochs: .* got nan"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs: expected an integer at least 0, got -1"),
        ({"warmup_epochs": "1"}, TypeError, "warmup_epochs: expected a number"),
        ({"epochs": 0}, ValueError, "epochs: expected an integer at least 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs: expected an integer"),
    ],
)  # fmt: skip
def test_ramps_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        AUSAMBatchSampler(scored(), 64, **options)


BAD = [
    ({"adlp": torch.zeros(3)}, TypeError, "adlp: .*Tensor"),
    ({"batch_size": 0}, ValueError, "batch_size: .*0"),
    ({"batch_size": 8.0}, TypeError, "batch_size: .*8.0"),
    ({"alpha": 0.0}, ValueError, "alpha: .*0.0"),
    ({"alpha": 1.1}, ValueError, "alpha: .*1.1"),
    ({"alpha": math.nan}, ValueError, "alpha: .*nan"),
    ({"s_min": 0.0}, ValueError, "s_min: .*0.0"),
    ({"s_max": 0.05}, ValueError, "s_max: .*0.05"),
    ({"warmup_epochs": -1}, ValueError, "warmup_epochs: .*-1"),
    ({"full_epochs": -1}, ValueError, "full_epochs: .*-1"),
    ({"seed": -1}, ValueError, "seed: .*-1"),
    ({"num_replicas": 0}, ValueError, "num_replicas: .*0"),
    ({"rank": 2, "num_replicas": 2}, ValueError, "rank: .*2"),
    ({"rank": -1, "num_replicas": 2}, ValueError, "rank: .*-1"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        AUSAMBatchSampler(**{"adlp": ADLP(10), "batch_size": 4, **arguments})


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (torch.arange(33), ValueError, "len.index.*32.*33"),
        (torch.empty(0, dtype=torch.int64), ValueError, "len.index.*0"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, r"index: .*\(2, 2\)"),
        ([1, 2], TypeError, r"index: .*\[1, 2\]"),
        (torch.tensor([1, N]), IndexError, f"index: {N}"),
    ],
)
def test_bad_select_changes_nothing(index, error, message):
    batches = AUSAMBatchSampler(scored(), 32)
    batches.set_epoch(1)
    with pytest.raises(error, match=message):
        batches.select(index)
    assert batches.state_dict()["position"] == 0


@pytest.mark.parametrize("options", [{"alpha": 1.0, "full_epochs": 0}, {"full_epochs": 9}])
@pytest.mark.parametrize("wrong", [-1, N])
def test_a_batch_that_is_kept_whole_must_be_of_the_table_too(options, wrong):
    adlp = scored()
    batches = AUSAMBatchSampler(adlp, 32, **options)
    with pytest.raises(IndexError, match=f"index: {wrong} is outside the table of {N} samples"):
        batches.select(torch.tensor([1, wrong]))
    assert batches.state_dict()["position"] == 0
    adlp._invalid = torch.zeros((), dtype=torch.int32)  # a table on CUDA, where raising would synchronise
    batches.select(torch.tensor([1, wrong, 2]))
    with pytest.raises(IndexError, match="index: 1 entries"):
        adlp.check()


def test_numpy_scalars_are_numbers_and_give_the_same_plan():
    """A seed of numpy's would print otherwise, which the generators are made from."""
    plain = AUSAMBatchSampler(scored(), 32, 0.25, s_min=0.5, s_max=2.0, seed=7, rank=1, num_replicas=2)
    ours = AUSAMBatchSampler(
        scored(),
        np.int64(32),
        np.float32(0.25),
        s_min=np.float16(0.5),
        s_max=np.float64(2.0),
        seed=np.uint8(7),
        warmup_epochs=np.int32(30),
        full_epochs=np.int16(1),
        rank=np.int64(1),
        num_replicas=np.int64(2),
    )
    assert epoch_of(ours, np.int64(3)) == epoch_of(plain, 3)
    assert repr(ours) == repr(plain)
    assert {type(v) for v in ours.state_dict().values()} == {int, bool}
    assert type(ours.alpha) is type(ours.s_min) is type(ours.s_max) is float
    assert len(ADLP(np.int64(5))) == 5
    with pytest.raises(TypeError, match=r"batch_size: .*float32"):
        AUSAMBatchSampler(ADLP(9), np.float32(4))
    with pytest.raises(ValueError, match=r"alpha: .*1\.5"):
        AUSAMBatchSampler(ADLP(9), 4, np.float32(1.5))


def test_repr_shows_the_settings():
    batches = AUSAMBatchSampler(ADLP(10), 4, 0.25, shuffle=False, seed=3)
    assert repr(batches) == (
        "AUSAMBatchSampler(ADLP(10, device='cpu'), batch_size=4, alpha=0.25, s_min=0.1, s_max=1.0, "
        "warmup_epochs=30, full_epochs=1, shuffle=False, drop_last=False, seed=3)"
    )
    assert "rank=1, num_replicas=2)" in repr(AUSAMBatchSampler(ADLP(9), 4, rank=1, num_replicas=2))


def test_indexed_refuses_a_loader_of_another_sampler():
    batches = AUSAMBatchSampler(scored(), 32)
    for loader in (DataLoader(dataset(), batch_size=32), [1, 2]):
        with pytest.raises(ValueError, match=r"batch_sampler.*select"):
            batches.indexed(loader)


def test_bad_epoch():
    with pytest.raises(ValueError, match=r"epoch: .*-1"):
        AUSAMBatchSampler(ADLP(4), 2).set_epoch(-1)


def test_a_loop_that_records_no_score_is_told():
    """It would train on a random half in every epoch."""
    batches = AUSAMBatchSampler(ADLP(40), 8)
    for epoch in range(2):  # whole batches; and the first that chooses, which a checkpoint may begin with
        batches.set_epoch(epoch)
        list(batches)
    batches.set_epoch(2)
    with pytest.warns(UserWarning, match=r"no score was recorded before epoch 2, .* call adlp\.update\("):
        list(batches)


def test_a_table_with_scores_a_random_half_and_whole_batches_are_no_mistake():
    scored = ADLP(40)
    scored.update(torch.arange(40), torch.zeros(40), torch.rand(40))
    for batches in (
        AUSAMBatchSampler(copy.deepcopy(scored), 8),
        AUSAMBatchSampler(ADLP(40), 8, s_min=1.0),
        AUSAMBatchSampler(ADLP(40), 8, alpha=1.0),
    ):
        batches.set_epoch(3)
        assert len(list(batches)) == 5
