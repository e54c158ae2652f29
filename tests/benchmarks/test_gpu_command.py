"""What `make gpu` leaves behind, without a GPU: its stages are small processes that fail in every way."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from gpu_output import MACHINE, Left
from helpers import ROOT

pytest.importorskip("matplotlib")
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import machine, running, stages


def python(name, code, seconds=60, *arguments, **facts):
    return stages.Stage(name, [sys.executable, "-c", code, *arguments], seconds, **facts)


# A suite on a GPU, of which torch knows nothing: it is faked, also because its import takes seconds.
IN_PARTS = """
import os, signal, sys, time
from pathlib import Path
from types import ModuleType, SimpleNamespace

lost = False

def synchronize():
    if lost: raise RuntimeError("an illegal memory access was encountered")

cuda = SimpleNamespace(
    is_initialized=lambda: True, synchronize=synchronize, empty_cache=lambda: None,
    get_device_name=lambda: "NVIDIA H200",
)
torch = sys.modules["torch"] = ModuleType("torch")
torch.Tensor, torch.cuda = object, cuda
from benchmarks import harness, parts
harness.machine = lambda device: {"gpu": "NVIDIA H200"}

def row(name):
    synchronize()
    return [harness.row("operators", name, "1", {"native": [1e-3], "eager": [2e-3]})]

def raises(): raise ValueError("planted")
def hangs(): time.sleep(60)
def dies(): os.kill(os.getpid(), signal.SIGKILL)

def loses():
    global lost
    lost = True
    synchronize()

made = {name: globals().get(name, lambda name=name: row(name)) for name in sys.argv[3].split()}
each = float(sys.argv[4])
whole = parts.run(made, "cuda", each=each, journal=Path(sys.argv[1]), folder=Path(sys.argv[2]))
sys.exit(0 if whole else 1)
"""


def suite(name, names, each=30, seconds=60):
    return python(name, IN_PARTS, seconds, stages.JOURNAL, stages.RESULTS, names, str(each))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs stages by the command's own main(); what is under --output then."""
    monkeypatch.setattr(machine, "facts", lambda: MACHINE)
    monkeypatch.setattr(machine, "output", lambda *command: "")
    monkeypatch.setattr(running, "LAST_WORDS", 0.5)
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}

    def call(chosen, *arguments):
        output = tmp_path / "output"
        status = gpu.main([*arguments, "--output", str(output)], chosen, tmp_path / "work")
        return status, Left(output)

    yield call
    running.ended_early.clear()
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def test_a_stage_that_fails_hangs_or_is_killed_costs_no_other(run, capsys):
    chosen = [
        python("fails", "[print('line', i) for i in range(40)]; raise SystemExit(3)"),
        python("hangs", "print('begun', flush=True); import time; time.sleep(60)", 1.2),
        python("killed", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        stages.Stage("missing", ["/no/such/program"], 5),
        python("silent", "", must_contain="SUMMARY: "),
        python(
            "finds", "print('== ERROR SUMMARY: 3 errors'); raise SystemExit(86)", must_contain="SUMMARY: "
        ),
        python("passes", "print('fine')"),
    ]
    status, left = run(chosen)
    assert status == 1 and [s for s, o in left.stages.items() if o["passed"]] == ["passes"]
    assert left.why("fails") == "exit status 3" and left.why("hangs") == "not done after 1 s"
    assert left.why("killed") == "SIGSEGV" and "No such file" in left.why("missing")
    assert "SUMMARY" in left.why("silent") and left.stages["finds"]["counts"] == {"findings": 3}
    assert left.files["hangs.log"].startswith("begun\nTraceback") and left.files["passes.log"] == "fine\n"
    assert "# NVIDIA H200: 1 of 7 stages passed" in left.summary and "- driver: 580.1" in left.summary
    said = capsys.readouterr().out
    for text in (said, left.summary):
        assert "line 39" in text and "line 15\n" in text and "line 14\n" not in text  # the last 25 lines


def test_a_stage_that_will_not_stop_is_ended_with_all_that_it_has_started(run, tmp_path):
    child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    code = child + (
        "import subprocess, sys; sleep = [sys.executable, '-c', sys.argv[1] + 'time.sleep(60)']; "
        "print(subprocess.Popen(sleep).pid, flush=True); time.sleep(60)"
    )
    begin = time.monotonic()
    _, left = run([python("stubborn", code, 1.2, child)])
    assert left.why("stubborn") == "not done after 1 s" and time.monotonic() - begin < 20
    status = Path(f"/proc/{int(left.files['stubborn.log'])}/stat")
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() - begin < 20
        time.sleep(0.05)


def test_what_is_there_after_each_stage(run, tmp_path):
    look = "import os, sys; print(sorted(os.listdir(sys.argv[1])))"
    chosen = [python(name, look, 60, str(tmp_path / "output")) for name in "ab"]
    status, left = run(chosen)
    assert status == 0
    assert left.files["a.log"] == left.files["b.log"] == "['gpu.tar.gz', 'summary.md']\n"


@pytest.mark.parametrize("failing", ["build", "loaded"])
def test_without_kernels_nothing_else_is_done(run, capsys, failing):
    code = "print('{} said this'); raise SystemExit({})"
    chosen = [
        *(python(s, code.format(s, int(s == failing)), essential=True) for s in ("build", "loaded")),
        python("tests", "", kind="checks"),
    ]
    status, left = run(chosen)
    assert status == 1 and list(left.stages)[-1] == failing and "tests.log" not in left.files
    assert "build said this" in left.files["build.log"] and "build said this" in capsys.readouterr().out


def test_a_part_that_raises_hangs_or_kills_the_process_costs_that_part(run):
    status, left = run([suite("operators", "first raises second dies third hangs last", each=1)])
    assert status == 1 and left.rows() == ["first", "second", "third", "last"]
    assert left.stages["operators"]["lost"] == {
        "raises": "ValueError: planted",
        "dies": "the process ended: SIGKILL",
        "hangs": "not done after 1 s",
    }
    assert left.stages["operators"]["counts"] == {"measured": 4, "failed": 2, "not done": 1}
    assert (
        left.why("operators") == "3 of 7 parts were lost" and "- not done after 1 s: hangs\n" in left.summary
    )
    assert "ValueError: planted" in left.files["operators.log"]  # with its traceback
    assert "## Operators" in left.summary and "| third " in left.summary


def test_another_process_goes_on_where_the_context_is_lost(run):
    _, left = run([suite("operators", "first loses second")])
    assert left.rows() == ["first", "second"]
    assert left.stages["operators"]["lost"] == {
        "loses": "RuntimeError: an illegal memory access was encountered"
    }


def test_a_stage_that_is_out_of_time_keeps_what_it_had(run):
    status, left = run([suite("operators", "first hangs", seconds=3), python("next", "")], "--minutes", "1")
    assert status == 1 and left.rows() == ["first"]
    assert left.stages["operators"]["lost"] == {"hangs": "not done when the time was over"}
    assert left.stages["next"]["passed"]


def test_no_stage_begins_after_the_time_for_all_is_over(run):
    status, left = run([python("late", "")], "--minutes", "0.01")
    assert status == 1 and left.why("late") == "no time was left"


def test_a_stage_leaves_time_to_those_after_it(run):
    _, left = run([python("timings", "", leaves=59.5), python("report", "")], "--minutes", "1")
    assert left.why("timings") == "no time was left" and left.stages["report"]["passed"]
    found = {stage.name: stage for stage in stages.stages() if stage.kind == "timings"}
    assert [name for name in found if not found[name].leaves] == ["begin", "end", "report"]


def test_a_stage_may_be_told_its_time(run):
    stage = python("told", "import sys; print(sys.argv[1])", 40, stages.SECONDS)
    told = int(run([stage], "--minutes", "1")[1].files["told.log"])
    assert 40 - running.ENDING - 3 <= told <= 40 - running.ENDING
    assert run([stage], "--minutes", "0.2")[1].why("told") == "no time was left"


def test_a_run_that_is_ended_from_outside_keeps_what_it_had(run, tmp_path):
    """By the signal that most schedulers send first."""
    written = tmp_path / "work/operators.jsonl"

    def end():
        while not written.exists() or '"hangs"' not in written.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    status, left = run([suite("operators", "first hangs"), python("next", "")])
    thread.join()
    assert status == 1 and left.rows() == ["first"]
    assert left.why("operators") == left.why("next") == "the run was ended"


def test_stages_beside_each_other(run, tmp_path):
    """Each waits for the other."""
    wait = (
        "import sys, time; from pathlib import Path; a, b = map(Path, sys.argv[1:]); a.touch()\n"
        "while not b.exists(): time.sleep(0.02)"
    )
    files = str(tmp_path / "a"), str(tmp_path / "b")
    chosen = [python("a", wait, 20, *files, beside=True), python("b", wait, 20, *files[::-1], beside=True)]
    assert run(chosen)[0] == 0


def test_only_checks_or_timings(run):
    chosen = [python("build", ""), python("tests", "", kind="checks"), python("steps", "", kind="timings")]
    assert list(run(chosen, "--only", "checks")[1].stages) == ["build", "tests"]
    assert list(run(chosen, "--only", "timings")[1].stages) == ["build", "steps"]


def test_architectures_of_the_image_are_not_passed_on_but_its_packages_are(run, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0")
    monkeypatch.setenv("PYTHONPATH", "/carried/packages")
    code = "import os; print(os.environ.get('TORCH_CUDA_ARCH_LIST'), os.environ['PYTHONPATH'])"
    _, left = run([python("build", code)])
    assert left.files["build.log"] == f"None {ROOT}{os.pathsep}/carried/packages\n"


TESTS = """
import os, signal, time
import pytest

def test_good(): pass
def test_bad(): assert 1 == 2, "planted"
def test_dies(): os.kill(os.getpid(), signal.SIGKILL)
@pytest.mark.skip
def test_skipped(): pass
def test_hangs(): time.sleep(60)
def test_last(): pass
"""


def pytest_stage(tmp_path, text, each=60):
    (tmp_path / "test_planted.py").write_text(text)
    command = [
        *stages.pytest(each=each),
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        "-c",
        os.devnull,
    ]
    return stages.Stage("tests", [*command, str(tmp_path / "test_planted.py")], 60)


def test_a_test_that_hangs_or_kills_the_process_costs_that_test(run, tmp_path):
    _, left = run([pytest_stage(tmp_path, TESTS, each=1)])
    lost = {name.split("::")[1]: why for name, why in left.stages["tests"]["lost"].items()}
    assert lost.pop("test_bad").startswith("call: ")
    assert lost == {
        "test_dies": "the process ended: SIGKILL",
        "test_hangs": "the process ended: exit status 1",
    }
    assert left.stages["tests"]["counts"] == {"passed": 2, "skipped": 1, "failed": 3}
    assert "planted" in left.files["tests.log"] and "in test_hangs" in left.files["tests.log"]


def test_pytest_that_ran_no_test_has_not_passed(run, tmp_path):
    status, left = run([pytest_stage(tmp_path, "import pytest\n@pytest.mark.skip\ndef test_a(): pass\n")])
    assert status == 1 and left.why("tests") == "nothing was measured or tested"
