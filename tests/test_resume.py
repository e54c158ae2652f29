"""Stop at any step, save, load in a new process, go on: bit-identical to never having stopped."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import same_bits

WORKER = Path(__file__).with_name("resume_worker.py")
STEPS = 24  # five batches an epoch: into the fifth epoch; three windows of vSAM after its warm-up


def train(state_file, stop_after):
    subprocess.run([sys.executable, str(WORKER), str(state_file), str(stop_after)], check=True, timeout=120)
    return torch.load(state_file, weights_only=True)


def assert_same_state(a, b, path=""):
    if isinstance(a, torch.Tensor):
        assert same_bits(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same_state(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole") / "state.pt", STEPS)


# In the warm-up; at the end of an epoch; while a PSF is reused; several times.
@pytest.mark.parametrize("stops", [(2,), (10,), (13,), (4, 5, 17)])
def test_resumed_run_is_bit_identical(tmp_path, uninterrupted, stops):
    state_file = tmp_path / "state.pt"
    for stop in stops:
        assert train(state_file, stop)["done"] == stop
    resumed = train(state_file, STEPS)
    assert_same_state(resumed, uninterrupted)


def test_the_run_is_one_worth_resuming(uninterrupted):
    """Both kinds of iteration, a PSF, an updated rate, a table that differs by sample."""
    vsam, adlp = uninterrupted["vsam"], uninterrupted["adlp"]
    assert vsam["controller"]["count"] > 3 and vsam["controller"]["s"] != 2
    assert vsam["has_psf"].all() and vsam["decay"] > 0
    assert len(adlp["count"].unique()) > 2
