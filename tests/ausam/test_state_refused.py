"""States that do not fit, for every object: refused, and nothing is changed."""

import copy
import functools

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ausam.checkpoints import advance, save_dcp
from helpers import assert_same_state
from resume_worker import SAMPLES, Training
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from ausam_ext import ADLP, VSAM, AUSAMBatchSampler

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


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
KEYS = {
    "adlp": ("version", "total", "count", "tried"),
    "batches": ("version", "epoch", "position", "seed"),
    "controller": ("version", "s", "observed", "count"),
    "vsam": (
        *("version", "progress", "sampled", "decision", "has_psf", "psf", "decay", "controller", "generator"),
    ),
}
for name in ("adlp", "vsam", "batches", "controller"):
    BAD.append((name, None, change("version", value=99), ValueError, r"version: expected \d, got 99"))
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


def test_no_state_of_perturbed_weights():
    training = Training()
    training.losses(training.train_set.x, training.train_set.y)
    with training.vsam.perturbed():
        with pytest.raises(RuntimeError, match=r"inside perturbed\(\)"):
            training.vsam.state_dict()
        training.losses(training.train_set.x, training.train_set.y)
    training.vsam.state_dict()
