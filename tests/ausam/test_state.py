"""state_dict() and load_state_dict() of every object: fresh ones go on bit for bit."""

import copy
import functools
import itertools
import re

import pytest
import torch
from ausam.checkpoints import advance, load_dcp, load_file, save_dcp, save_file
from helpers import ROOT, assert_same_state
from resume_worker import Training

from ausam_ext import SAM

STEPS = 25  # ten batches an epoch
# In the warm-up; a PSF is reused; after an overflow; end of an epoch; end of a window; the PSF has expired.
STOPS = [2, 4, 9, 10, 13, 21]

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


OPTIONS = {
    "SGD": {},
    "AdamW": {"optimizer": "AdamW"},
    "scaled": {"losses_scaled": True},
    "frozen": {"frozen": True},
}


@functools.cache
def uninterrupted(options):
    return advance(Training(**OPTIONS[options]), STEPS)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("save", "load"), [(save_file, load_file), (save_dcp, load_dcp)], ids=["file", "dcp"]
)
def test_fresh_objects_go_on_bit_for_bit(tmp_path, options, save, load):
    whole = uninterrupted(options)
    for stop in STOPS:
        training = Training(**OPTIONS[options])
        assert_same_state(advance(training, stop), whole[:stop])
        save(training, tmp_path / str(stop))
        fresh = Training(**OPTIONS[options])
        load(fresh, tmp_path / str(stop))
        assert_same_state(advance(fresh, STEPS), whole[stop:], f"stopped after {stop}")


def test_the_stops_are_worth_it():
    states = [uninterrupted("scaled")[stop - 1] for stop in STOPS]
    assert [s["vsam"]["sampled"] for s in states] == [True, False, False, False, True, False]
    assert [s["vsam"]["progress"][3] for s in states] == [0, 1, 2, 3, 0, 4]  # ages; 3 is the last reuse
    assert [s["batches"]["epoch"] for s in states] == [0, 0, 0, 0, 1, 2]
    assert len({s["scaler"]["scale"] for s in states}) == 2
    assert len({s["vsam"]["controller"]["s"] for s in states}) == 2
    assert states[-1]["adlp"]["count"].unique().tolist() == [0, 1, 2]


def test_a_state_dict_changes_nothing():
    training, twin = Training(), Training()
    for steps in (5, 10, 21):
        advance(training, steps)
    torch.manual_seed(0)
    twin = Training()
    for _ in itertools.islice(twin.steps(), 21):
        pass
    assert_same_state(twin.state(), training.state())


def test_a_loaded_state_is_a_copy():
    a, b = Training(), Training()
    advance(a, 4)
    for name in ("adlp", "vsam", "batches"):
        getattr(b, name).load_state_dict(getattr(a, name).state_dict())
    before = copy.deepcopy(b.vsam.state_dict()), copy.deepcopy(b.adlp.state_dict())
    advance(a, 8)
    assert_same_state((b.vsam.state_dict(), b.adlp.state_dict()), before)


def test_the_state_of_sam_is_its_kind_alone():
    """Nothing is carried from one step to the next; a loop that saves its objects may save this one too."""
    training = Training()
    sam = SAM(training.model)
    first = []
    for method in (sam, sam, SAM(training.model)):
        torch.manual_seed(1)
        training.model.zero_grad()
        training.losses(training.train_set.x, training.train_set.y)
        with method.perturbed():
            training.losses(training.train_set.x, training.train_set.y)
        first.append([p.grad.clone() for p in training.model.parameters()])
    assert_same_state(first[1], first[0])
    assert_same_state(first[2], first[0])


@pytest.mark.parametrize(
    ("save", "load", "workers"), [("save", "load", 2), ("save_distributed", "load_distributed", 0)]
)
def test_the_recipes_of_the_document(tmp_path, save, load, workers):
    page: dict = {"__name__": "checkpoints"}
    text = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "checkpoints.md", "exec"), page)

    def start(steps):
        torch.manual_seed(0)
        objects = page["create"]()
        page["train"](objects, steps, workers)
        return objects

    whole = start(20)
    page[save](start(13), tmp_path / "checkpoint")  # eight batches an epoch
    resumed = page["create"]()
    page[load](resumed, tmp_path / "checkpoint")
    page["train"](resumed, 7, workers)
    for name in whole:
        assert_same_state(resumed[name].state_dict(), whole[name].state_dict(), name)
