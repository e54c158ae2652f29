"""The papers' training loop: what it computes, and that it goes on wherever it was stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from helpers import ROOT, assert_same_state

from benchmarks import runs
from benchmarks.data import write
from benchmarks.methods import METHODS
from benchmarks.papers import jobs, published
from benchmarks.problems import Poses, problem
from benchmarks.training import Training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("CIFAR-10", "CIFAR-100"):
        write(name, folder / name, samples=90)
    write("MPII", folder / "MPII")
    return folder


def training_of(method, data, **changes):
    row = next(jobs.rows("vsam-3"))
    job = replace(jobs.job("vsam-3", row, 0, None, True), method=method, batch_size=30, **changes)
    job = replace(job, network="small CNN", small={})
    return Training(job, problem(job, data, torch.device("cpu")), torch.device("cpu"))


# Forward and backward samples of an iteration, in batches; None where it is drawn.
SAMPLES = {
    "SGD": (1, 1),
    "SAM": (2, 2),
    "SAM-5": (8 / 6, 8 / 6),  # two of six iterations
    "SAM-10": (7 / 6, 7 / 6),
    "SAM+Random": (1, 1),
    "LookSAM-5": (8 / 6, 8 / 6),
    "ESAM": (2.5, 1.5),
    "K-SAM": (2, 1),
    "Momentum-SAM": (1, 1),
    "SAF": (1, 1),
    "MESA": (1, 1),  # beside those of the average
    "AUSAM-0.4": (1.4, 1.4),  # its first epoch of two is whole
    "AUSAM-0.5": (1.5, 1.5),
    "AUSAM-0.6": (1.6, 1.6),
    "AUSAM-0.7": (1.7, 1.7),
    "AUSAM+vSAM": (1.5, 1.5),  # its first three epochs take both passes
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_computes_what_it_should(method, data):
    training = training_of(method, data)
    for _ in training.steps():
        pass
    counts = training.counts
    assert len(training.progress.accuracy) == len(training.progress.loss) == 2
    if method in SAMPLES:
        of = [samples / (30 * counts.steps) for samples in (counts.forward_samples, counts.backward_samples)]
        assert of == pytest.approx(SAMPLES[method])
    elif method.endswith(("Info", "Info*")):
        assert counts.steps <= 6 and counts.backwards == counts.steps * (1 + method.startswith("SAM"))
    else:
        taken = training.progress.second_passes
        assert counts.backwards == counts.forwards == counts.steps + taken
        assert counts.backward_samples == counts.forward_samples == 30 * (counts.steps + taken)


@pytest.mark.parametrize("method", ["SGD", "vSAM", "AUSAM-0.5", "SAF", "MESA", "ESAM", "AE-SAM", "SAM+Info"])
@pytest.mark.parametrize("stop", [2, 4, 5])
def test_goes_on_bit_for_bit(method, stop, data, tmp_path):
    """Within an epoch, after its last step, and after its end."""
    whole = training_of(method, data)
    for _ in whole.steps():
        pass
    assert_goes_on(whole, training_of(method, data), training_of(method, data), stop, tmp_path / "state.pt")


def assert_goes_on(whole, first, second, stop, path):
    """``second`` ends as ``whole`` did, from where ``first`` stopped."""
    for i, _ in enumerate(first.steps(), 1):
        if i == stop:
            break
    torch.save(first.state(), path)
    second.load(torch.load(path, weights_only=True))
    for _ in second.steps():
        pass
    states = [whole.state(), second.state()]
    for state in states:
        state["progress"].pop("seconds")
    assert_same_state(*states)


@pytest.mark.parametrize("stop", [3, 5])
def test_poses_go_on_bit_for_bit_and_have_other_views_in_another_epoch(stop, tmp_path):
    write("MPII", tmp_path / "MPII")
    row = next(row for row in published.rows("ausam-4") if row.method == "AUSAM")
    job, device = jobs.job("ausam-4", row, 0, 3, True), torch.device("cpu")

    def training():
        return Training(job, problem(job, tmp_path, device), device)

    whole = training()
    for _ in whole.steps():
        pass
    assert_goes_on(whole, training(), training(), stop, tmp_path / "state.pt")
    views = whole.problem.dataset
    views.epoch = 0
    image = views[0][0]
    assert torch.equal(image, views[0][0])
    views.epoch = 1
    assert not torch.equal(image, views[0][0])


def test_the_learning_rate_of_poses_falls_twice(tmp_path):
    factor = Poses.factor
    assert [factor(Poses, done / 210) for done in (0, 169, 170, 199, 200, 209)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


KILLED = {
    "vsam-4": ["--methods", "SAM-5", "vSAM", "--datasets", "CIFAR-10"],
    "ausam-4": ["--methods", "AUSAM"],
    "ausam-5": ["--methods", "SGD+Info", "SAM+Info"],
}


@pytest.mark.parametrize("table", KILLED)
def test_a_run_that_is_killed_ends_with_the_same_bits(table, data, tmp_path):
    command = [sys.executable, "-m", "benchmarks.papers", "run", table, "--made", "--seeds", "1"]
    command += [*KILLED[table], "--epochs", "3", "--data", str(data)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PAPERS_SAVE_EVERY": "0"}
    records = []
    for kill in (False, True):
        out = tmp_path / str(kill)
        if kill:
            process = subprocess.Popen(
                [*command, "--out", str(out)], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
            )
            while not list(out.glob("*.pt")):
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not list(out.glob("*.json"))
        subprocess.run(
            [*command, "--out", str(out)], cwd=ROOT, env=environment, check=True, capture_output=True
        )
        records.append({path.name: json.loads(path.read_text()) for path in out.glob("*seed0.json")})
    for a, b in zip(*(r.values() for r in records), strict=True):
        a.pop("seconds"), b.pop("seconds")
    assert records[0] and records[0] == records[1]


def test_stops_when_the_time_is_over_and_goes_on(data, tmp_path):
    row = next(jobs.rows("vsam-4"))
    todo = [jobs.job("vsam-4", row, seed, 1, True) for seed in (0, 1)]
    assert not runs.run(todo, data, tmp_path, torch.device("cpu"), seconds=0)
    assert len(list(tmp_path.glob("*.pt"))) == 1 and not list(tmp_path.glob("*.json"))
    assert runs.run(todo, data, tmp_path, torch.device("cpu"))
    assert not list(tmp_path.glob("*.pt")) and len(list(tmp_path.glob("*.json"))) == 2
