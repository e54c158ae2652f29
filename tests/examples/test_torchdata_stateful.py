"""torchdata: a run that was stopped anywhere, and goes on, has the weights of one that was not."""

import copy

import pytest
import torch

# torchdata 0.11 calls it in every iter().
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


@pytest.fixture
def start(example):
    def make(workers=0, with_loader=False):
        torch.manual_seed(0)
        training = example.Training(epochs=3, workers=workers)
        training.saved += ("loader",) if with_loader else ()
        return training

    return make


def test_weights_are_those_of_a_loop_by_hand(start, by_hand, chosen):
    ours, theirs = start(workers=2), start()
    ours.run()
    steps = chosen(theirs.batches, 3, *theirs.data.tensors)
    by_hand(theirs.model, theirs.optimizer, theirs.sam, steps, theirs.adlp)
    assert_same(ours, theirs)


@pytest.mark.parametrize("stop", [13, 29, 45])  # within an epoch, and at the end of one
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("with_loader", [False, True], ids=["without loader", "with loader"])
def test_goes_on_as_if_it_had_not_been_stopped(start, stop, workers, with_loader):
    whole, stopped, resumed = start(), start(workers, with_loader), start(workers, with_loader)
    whole.run()
    stopped.run(stop)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    resumed.run()
    assert_same(resumed, whole)


def assert_same(ours, theirs):
    pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(ours.adlp.total, theirs.adlp.total) and torch.equal(ours.adlp.count, theirs.adlp.count)
