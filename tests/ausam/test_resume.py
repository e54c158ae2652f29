"""Killed at any moment and started again, a run computes the same bits as one that was never stopped."""

import multiprocessing
import random
import signal

import pytest
import torch
from helpers import assert_same_state
from resume_worker import newest, train

STEPS = 110  # ten batches an epoch
KILLS = 10


@pytest.fixture(scope="module")
def processes():
    """``run(...)`` gives the exit code of ``train(...)``; ``ended(seconds)`` whether no process is left."""
    context = multiprocessing.get_context("forkserver")
    # Imported once, not at every start; an optimizer needs the last one.
    context.set_forkserver_preload(["ausam_ext", "torch.utils.data", "torch._dynamo"])
    held, ends = context.Pipe()

    def run(directory, save_every, workers, kill=None):
        process = context.Process(target=train, args=(directory, STEPS, save_every, workers, kill, held))
        process.start()
        process.join(60)
        return process.exitcode

    def ended(seconds):
        held.close()
        return ends.poll(seconds)  # the end of the file comes when nobody holds it any more

    return run, ended


def plan(seed):
    """Step, place and seconds after it of each kill."""
    choose = random.Random(seed)
    steps = sorted(choose.sample(range(1, STEPS - 15), KILLS))
    places = ["perturbed", "perturbed", "writing", "replacing"] + ["step"] * (KILLS - 4)
    choose.shuffle(places)
    return [
        (step, place, choose.uniform(1e-4, 2e-2) if place == "step" else 0.0)
        for step, place in zip(steps, places, strict=True)
    ]


@pytest.mark.parametrize("workers", [2, 0])
def test_ten_random_kills_are_survived_bit_for_bit(tmp_path, processes, workers):
    """With workers each sample's augmentation is seeded; without, it draws from torch's generator."""
    run, _ = processes
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(whole, 1, workers) == 0
    for kill in plan(seed=workers):
        assert run(killed, 3, workers, kill) == -signal.SIGKILL, kill
        if kill[1] in ("writing", "replacing"):
            assert (killed / "incomplete").exists()
    assert newest(killed) is None or int(newest(killed).stem) < STEPS
    assert run(killed, 3, workers) == 0
    checkpoints = sorted(killed.glob("*.pt"))
    assert len(checkpoints) == STEPS // 3 + 1
    for checkpoint in checkpoints:
        state, expected = (torch.load(d / checkpoint.name, weights_only=True) for d in (killed, whole))
        assert_same_state(state, expected, checkpoint.name)


def test_workers_of_killed_processes_end_too(processes):
    assert processes[1](30)
