"""What `make gpu` does with its steps, without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is no part of the package
from benchmarks import gpu  # noqa: E402

sys.path.remove(str(ROOT))


def python(name, code, seconds=60, **facts):
    return gpu.Step(name, [sys.executable, "-c", code], seconds, **facts)


def test_every_step_runs_and_its_outcome_is_kept(tmp_path):
    stages = [
        [python("fails", "print('1 failed, 7 passed, 2 skipped in 3.14s'); raise SystemExit(1)")],
        [python("hangs", "print('begun', flush=True); import time; time.sleep(60)", 5), python("passes", "")],
        [python("silent", "", must_contain="SUMMARY: "), gpu.Step("missing", ["/no/such/program"], 5)],
        [
            python(
                "finds", "print('== ERROR SUMMARY: 3 errors'); raise SystemExit(86)", must_contain="SUMMARY: "
            )
        ],
        [python("no tests", "print('5 skipped in 0.1s')")._replace()],
    ]
    outcomes = gpu.run(stages, 120, tmp_path)
    assert [o["step"] for o in outcomes if o["passed"]] == ["passes", "no tests"]
    why = {o["step"]: o["why"] for o in outcomes}
    assert why["fails"] == "exit status 1" and why["hangs"] == "not done after 5 s"
    assert "SUMMARY" in why["silent"] and "No such file" in why["missing"]
    assert outcomes[0]["counts"] == {"failed": 1, "passed": 7, "skipped": 2}
    assert outcomes[5]["counts"] == {"findings": 3}
    assert (tmp_path / "hangs.log").read_text() == "begun\n"


def test_pytest_that_ran_no_test_has_not_passed(tmp_path):
    (tmp_path / "test_none.py").write_text("import pytest\n@pytest.mark.skip\ndef test_a(): pass\n")
    step = gpu.Step("skips", [sys.executable, "-m", "pytest", "-q", str(tmp_path / "test_none.py")], 100)
    (outcome,) = gpu.run([[step]], 100, tmp_path)
    assert not outcome["passed"] and outcome["why"] == "no test passed"


def test_no_step_begins_after_the_time_for_all_is_over(tmp_path):
    (outcome,) = gpu.run([[python("late", "")]], 0.5, tmp_path)
    assert not outcome["passed"] and outcome["why"] == "no time was left"


def test_a_step_may_be_told_its_time(tmp_path):
    step = python("told", f"print('{gpu.SECONDS}')", 100, leaves=20)
    assert gpu.run([[step]], 60, tmp_path)[0]["passed"]
    assert 60 - 20 - gpu.ENDING - 2 <= int((tmp_path / "told.log").read_text()) <= 60 - 20 - gpu.ENDING
    (late,) = gpu.run([[step]], 30, tmp_path)
    assert late["why"] == "no time was left"


def test_what_is_timed_runs_alone():
    timed = [
        stage
        for stage in gpu.steps()
        if any(part.startswith("benchmarks") for step in stage for part in step.command)
    ]
    names = ["operators", "memory", "scaling", "steps", "report"]
    assert [[step.name for step in stage] for stage in timed] == [[name] for name in names]


def test_results(tmp_path):
    outcomes = gpu.run([[python("a", ""), python("b", "raise SystemExit(3)")]], 60, tmp_path)
    stats = {"median": 1e-6, "iqr": 1e-7, "rounds": 9, "mean": 2e-6}
    (tmp_path / "benchmarks.json").write_text(
        json.dumps({"benchmarks": [{"name": "dlp", "group": "g", "stats": stats}]})
    )
    path = gpu.write({"gpu": "NVIDIA H200", "torch": "2.11"}, outcomes, tmp_path / "results", tmp_path)
    stored = json.loads(path.read_text())
    assert path.name == "nvidia-h200.json"
    assert [s["passed"] for s in stored["steps"]] == [True, False]
    assert stored["benchmarks"] == [{"name": "dlp", "group": "g", "median": 1e-6, "iqr": 1e-7, "rounds": 9}]
    text = path.with_suffix(".md").read_text()
    assert "NVIDIA H200: 1 of 2 steps passed" in text and "| b | failed: exit status 3 |" in text


def test_steps_name_files_that_exist_and_fit_the_time():
    stages = gpu.steps()
    names = [s.name for stage in stages for s in stage]
    assert len(set(names)) == len(names) and {"build", "graphs", "operators", "steps", *gpu.TOOLS} <= set(
        names
    )
    for step in (s for stage in stages for s in stage):
        for argument in step.command:
            file = argument.removeprefix("--ignore=")
            assert not file.startswith("tests") or (ROOT / file).exists(), file


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_fails():
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 2 and "no NVIDIA GPU" in run.stderr
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--backend=cuda", "-k", "cuda", "tests/test_statistics.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 4 and "sees no NVIDIA GPU" in run.stderr
