"""Which stages `make gpu` has and in which order; what they name exists."""

import subprocess
import sys

import pytest
import torch
from helpers import ROOT

pytest.importorskip("matplotlib")
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import stages


def test_two_sanitizers_run_at_a_time_and_all_else_alone():
    turns = [[stage.name for stage in turn] for turn in gpu.in_turn(stages.stages())]
    assert turns[-1] == list(stages.TOOLS) and all(len(turn) == 1 for turn in turns[:-1])
    order = [turn[0] for turn in turns]
    wanted = ["build", "loaded", "tests", "steps", "operators", "memory", "scaling", "memcheck"]
    assert [name for name in order if name in wanted] == wanted


def test_stages_name_files_and_modules_that_exist():
    found = stages.stages()
    names = [stage.name for stage in found]
    assert len(set(names)) == len(names) and {"build", "loaded", "graphs", "steps", *stages.TOOLS} <= set(
        names
    )
    for argument in (argument for stage in found for argument in stage.command):
        file = argument.removeprefix("--ignore=")
        assert not file.startswith("tests") or (ROOT / file).exists(), file
        path = ROOT / argument.replace(".", "/")
        if argument.startswith("benchmarks."):
            assert (path / "__main__.py").exists() or path.with_suffix(".py").exists(), argument


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_fails(tmp_path, capsys):
    assert gpu.main(["--output", str(tmp_path / "output")], work=tmp_path / "work") == 2
    assert "no NVIDIA GPU" in capsys.readouterr().err and not any(tmp_path.iterdir())
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--backend=cuda", "-k", "cuda", "tests/ops/test_statistics.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 4 and "sees no NVIDIA GPU" in run.stderr
