"""state_dict() and load_state_dict() of every object: into fresh ones, and where they do not fit."""

import copy
import functools
import itertools
import re

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers import ROOT, assert_same_state
from resume_worker import SAMPLES, Training
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler

STEPS = 25  # ten batches an epoch
# In the warm-up; a PSF is reused; after an overflow; end of an epoch; end of a window; the PSF has expired.
STOPS = [2, 4, 9, 10, 13, 21]

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def for_dcp(training):
    """Objects as they are, but for the optimizer: a fresh one's state has nothing to load into."""
    model, optimizer = get_state_dict(training.model, training.optimizer)
    objects = {name: getattr(training, name) for name in ("adlp", "batches", "vsam", "scaler")}
    return {
        **objects,
        "model": model,
        "optimizer": optimizer,
        "rng": torch.get_rng_state(),
        "done": training.done,
    }


def save_dcp(training, path):
    dcp.save(for_dcp(training), checkpoint_id=path, no_dist=True)


def load_dcp(training, path):
    state = for_dcp(training)
    dcp.load(state, checkpoint_id=path, no_dist=True)
    model, optimizer = state["model"], state["optimizer"]
    set_state_dict(training.model, training.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    torch.set_rng_state(state["rng"])
    training.done = state["done"]


def save_file(training, path):
    torch.save(training.state(), path)


def load_file(training, path):
    training.load(torch.load(path, weights_only=True))


def advance(training, until):
    """States after each step."""
    return [
        copy.deepcopy(training.state()) for _ in itertools.islice(training.steps(), until - training.done)
    ]


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


def other_model():
    return nn.Sequential(nn.Linear(8, 31), nn.BatchNorm1d(31), nn.ReLU(), nn.Dropout(0.2), nn.Linear(31, 3))


def other_vsam(model=None, **options):
    return lambda: VSAM(
        model or Training().model, **{"warmup_steps": 0, "window": 10, "slices": 2, **options}
    )


def change(*path, value=None):
    """What deletes, or replaces, a value of a state."""

    def apply(state):
        *heads, last = path
        for head in heads:
            state = state[head]
        if value is None:
            del state[last]
        else:
            state[last] = value

    return apply


def unchanged(state):
    pass


BAD = [
    ("adlp", lambda: ADLP(SAMPLES + 1), unchanged, ValueError, r"301 samples, got one of \(300,\)"),
    ("adlp", None, change("count", value=torch.zeros(7, dtype=torch.int32)), ValueError, "^count: .*samples"),
    ("adlp", None, change("tried", value=torch.zeros(7, dtype=torch.uint8)), ValueError, "^tried: .*samples"),
    ("vsam", other_vsam(other_model()), unchanged, ValueError, r"psf\[0\]: .*\(31, 8\), got \(32, 8\)"),
    ("vsam", other_vsam(nn.Linear(8, 32)), unchanged, ValueError, "psf: expected 2 parameters, got 6"),
    ("vsam", other_vsam(window=20), unchanged, ValueError, "window: expected 10, of the state, got 20"),
    ("vsam", None, change("generator", value=torch.zeros(3, dtype=torch.uint8)), RuntimeError, "state"),
    ("vsam", None, change("controller", "version", value=9), ValueError, "version: expected 1, got 9"),
    (
        "batches",
        lambda: AUSAMBatchSampler(ADLP(SAMPLES), 31),
        unchanged,
        ValueError,
        "batch_size: expected 32",
    ),
    (
        "batches",
        lambda: AUSAMBatchSampler(ADLP(SAMPLES), 32, rank=0, num_replicas=2),
        unchanged,
        ValueError,
        "num_replicas: expected 1, .*got 2",
    ),
]
for name in ("adlp", "vsam", "batches", "controller"):
    BAD.append((name, None, change("version", value=99), ValueError, r"version: expected \d, got 99"))
KEYS = {
    "adlp": ("version", "total", "count", "tried"),
    "batches": ("version", "epoch", "position", "seed"),
    "controller": ("version", "s", "observed", "count"),
    "vsam": (
        *("version", "progress", "sampled", "decision", "has_psf", "psf", "decay", "controller", "generator"),
    ),
}
for name, keys in KEYS.items():
    BAD += [(name, None, change(key), KeyError, key) for key in keys]
for key in KEYS["controller"]:
    BAD.append(("vsam", None, change("controller", key), KeyError, key))


@functools.cache
def trained(steps):
    training = Training()
    advance(training, steps)
    return training


def of(training, name):
    return training.vsam.controller if name == "controller" else getattr(training, name)


@pytest.mark.parametrize(("name", "make", "apply", "error", "message"), BAD)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(name, make, apply, error, message):
    state = copy.deepcopy(of(trained(17), name).state_dict())
    apply(state)
    target = make() if make else of(trained(4), name)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(error, match=message):
        target.load_state_dict(state)
    assert_same_state(target.state_dict(), before)


def test_another_model_is_refused_also_before_there_is_a_psf():
    with pytest.raises(ValueError, match=r"psf\[0\]: .*\(31, 8\), got \(32, 8\)"):
        other_vsam(other_model())().load_state_dict(Training().vsam.state_dict())


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adlp", lambda: ADLP(SAMPLES + 1)),
        ("vsam", other_vsam(other_model())),
        ("vsam", other_vsam(nn.Linear(8, 32))),
        ("vsam", other_vsam(window=20)),
    ],
)
def test_dcp_refuses_other_sizes_and_changes_nothing(tmp_path, name, make):
    save_dcp(trained(17), tmp_path)
    target = make()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises((ValueError, CheckpointException), match=r"Size mismatch|Missing key|expected"):
        dcp.load({name: target}, checkpoint_id=tmp_path, no_dist=True)
    assert_same_state(target.state_dict(), before)


def test_between_epochs_batches_and_processes_may_change():
    training = trained(10)
    state = {**training.batches.state_dict(), "epoch": 1, "position": 0}
    other = AUSAMBatchSampler(ADLP(SAMPLES), 16, rank=1, num_replicas=2)
    other.load_state_dict(state)
    assert other.epoch == 1 and len(list(other)) == 10  # 150 samples of this process in batches of 16


def test_the_psf_takes_the_dtype_of_the_weights():
    state = trained(4).vsam.state_dict()
    vsam = other_vsam(Training().model.double())()
    vsam.load_state_dict(state)
    loaded = vsam.state_dict()["psf"]
    assert all(
        psf.dtype == torch.float64 and torch.equal(psf.float(), old)
        for psf, old in zip(loaded, state["psf"], strict=True)
    )


def test_a_loaded_state_is_a_copy():
    a, b = Training(), Training()
    advance(a, 4)
    for name in ("adlp", "vsam", "batches"):
        getattr(b, name).load_state_dict(getattr(a, name).state_dict())
    before = copy.deepcopy(b.vsam.state_dict()), copy.deepcopy(b.adlp.state_dict())
    advance(a, 8)
    assert_same_state((b.vsam.state_dict(), b.adlp.state_dict()), before)


def test_no_state_of_perturbed_weights():
    training = Training()
    training.losses(training.train_set.x, training.train_set.y)
    with training.vsam.perturbed():
        with pytest.raises(RuntimeError, match=r"inside perturbed\(\)"):
            training.vsam.state_dict()
        training.losses(training.train_set.x, training.train_set.y)
    training.vsam.state_dict()


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
