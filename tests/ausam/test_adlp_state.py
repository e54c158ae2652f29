"""The ADLP table kept and brought back: a run goes on from any checkpoint; what does not fit is refused."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers import same_bits
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, AUSAMBatchSampler

NAN, INF = float("nan"), float("inf")


def test_state_goes_through_a_file(tmp_path):
    a, b = ADLP(4), ADLP(4)
    a.update(torch.tensor([0, 2, 3]), torch.zeros(3), torch.tensor([0.1, 0.7, NAN]))
    torch.save(a.state_dict(), tmp_path / "adlp.pt")
    b.load_state_dict(torch.load(tmp_path / "adlp.pt", weights_only=True))
    assert same_bits(a.total, b.total) and torch.equal(a.count, b.count)
    assert a.tried.tolist() == b.tried.tolist() == [0, 0, 0, 1]
    a.update(torch.tensor([0, 1]), torch.zeros(2), torch.tensor([1.0, NAN]))
    assert b.count.tolist() == [1, 0, 1, 0] and b.tried.tolist() == [0, 0, 0, 1]  # a copy


def test_a_state_from_before_there_were_marks(tmp_path):
    old = {"version": 2, "total": torch.tensor([0.5, 0, 0]), "count": torch.tensor([2, 0, 0]).int()}
    adlp = ADLP(3)
    adlp.update(torch.tensor([0, 1]), torch.tensor([NAN, INF]), torch.ones(2))
    adlp.load_state_dict(old)
    assert adlp.mean()[0] == 0.25 and adlp.count.tolist() == [2, 0, 0] and adlp.tried.tolist() == [0, 0, 0]
    adlp.update(torch.tensor([1]), torch.tensor([NAN]), torch.ones(1))
    new = adlp.state_dict()
    assert new["version"] == 3 and new["tried"].tolist() == [0, 1, 0]


def test_all_of_the_table_moves():
    adlp = ADLP(3).to("meta")
    assert {t.device.type for t in vars(adlp).values() if isinstance(t, torch.Tensor)} == {"meta"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {
                "total": torch.zeros(5),
                "count": torch.zeros(5, dtype=torch.int32),
                "tried": torch.zeros(5, dtype=torch.uint8),
            },
            ValueError,
            r"4 samples.*\(5,\)",
        ),
        ({"version": 99}, ValueError, "version: .*99"),
        ({"tried": torch.zeros(5, dtype=torch.uint8)}, ValueError, r"^tried: .*4 samples.*\(5,\)"),
        ({"version": 1}, ValueError, "version: .*1"),
        ({"count": None}, KeyError, "count"),
        ({"tried": None}, KeyError, "tried"),
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


class Run:
    """A table, a sampler and a loader, and what they give."""

    def __init__(self):
        self.adlp = ADLP(203)
        self.batches = AUSAMBatchSampler(self.adlp, 32, warmup_epochs=2)
        self.loader = DataLoader(TensorDataset(torch.arange(203)), batch_sampler=self.batches)

    def train(self, steps):
        seen = []
        while len(seen) < steps:
            for index, _ in self.batches.indexed(self.loader):
                loss = torch.zeros(len(index)).masked_fill(index % 5 == 0, NAN)  # in every visit
                self.adlp.update(index, loss, index / 203 + self.batches.epoch)
                seen.append(index.tolist())
                if len(seen) == steps:
                    break
        return seen

    def parts(self):
        return {"adlp": self.adlp, "batches": self.batches}

    def state(self):
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load(self, state):
        for name, part in self.parts().items():
            part.load_state_dict(state[name])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("steps", [0, 4, 7, 18])  # at first, in a full epoch, at its end, in the third
@pytest.mark.parametrize("way", ["torch.save", "dcp of states", "dcp of objects"])
def test_training_goes_on_from_any_checkpoint(tmp_path, way, steps):
    """Also from one that is loaded in place, into what the state_dict() of fresh objects gives."""
    run, resumed = Run(), Run()
    run.train(steps)
    if way == "torch.save":
        torch.save(run.state(), tmp_path / "state.pt")
        resumed.load(torch.load(tmp_path / "state.pt", weights_only=True))
    elif way == "dcp of states":
        dcp.save(run.state(), checkpoint_id=tmp_path, no_dist=True)
        state = resumed.state()
        dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
        resumed.load(state)
    else:
        dcp.save(run.parts(), checkpoint_id=tmp_path, no_dist=True)
        dcp.load(resumed.parts(), checkpoint_id=tmp_path, no_dist=True)
    assert resumed.train(20) == run.train(20)
    assert same_bits(resumed.adlp.total, run.adlp.total)
    assert torch.equal(resumed.adlp.count, run.adlp.count)
    assert torch.equal(resumed.adlp.tried, run.adlp.tried) and run.adlp.tried.sum() == 41


def test_the_state_has_the_same_keys_at_any_time():
    run = Run()
    keys = {name: state.keys() for name, state in run.state().items()}
    run.train(18)
    assert {name: state.keys() for name, state in run.state().items()} == keys


def test_a_table_that_is_loaded_takes_9_bytes_a_sample():
    adlp = ADLP(4)
    adlp.load_state_dict(ADLP(4).state_dict())
    tensors = [v for v in vars(adlp).values() if isinstance(v, (torch.Tensor, tuple))]
    assert sum(t.numel() * t.element_size() for t in tensors) == 9 * 4
