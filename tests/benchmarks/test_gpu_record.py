"""What `make gpu` records: the machine, its clocks, the archive; and when kernels are loaded."""

import json
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from gpu_output import MACHINE, Left
from helpers import ROOT

pytest.importorskip("matplotlib")
from benchmarks import journal
from benchmarks.gpu import loaded, machine, record


def test_the_archive_is_renewed_while_a_stage_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "EVERY", 0.0)
    kept = record.Record(MACHINE, tmp_path / "work", tmp_path / "output")
    kept.write()
    (tmp_path / "work/running.log").write_text("so far")
    kept.tick()
    assert Left(tmp_path / "output").files["running.log"] == "so far"


def test_a_summary_comes_also_where_the_figures_cannot_be_read(tmp_path):
    kept = record.Record(MACHINE, tmp_path / "work", tmp_path / "output")
    (tmp_path / "work/results").mkdir()
    (tmp_path / "work/results/nvidia-h200.json").write_text("{")
    kept.write()
    assert "The figures cannot be shown: JSONDecodeError" in Left(tmp_path / "output").summary


def test_an_alarm_that_a_destructor_swallows_rings_again(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: lost.append(raised.exc_type))
    lost = []

    class Slow:
        def __del__(self):
            time.sleep(0.3)

    def part():
        end = time.monotonic() + 10
        Slow()  # in which the first alarm rings
        while time.monotonic() < end:
            time.sleep(0.01)

    begin = time.monotonic()
    with pytest.raises(journal.OutOfTime):
        journal.within(0.1, part)
    assert lost == [journal.OutOfTime] and time.monotonic() - begin < 3
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert journal.within(5, lambda: 7) == 7 and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_clocks_are_read_and_what_cannot_be_asked_is_left_out(monkeypatch):
    said = {"nvidia-smi": "1980 MHz, 3201 MHz, 312.5 W, 41"}
    monkeypatch.setattr(machine, "output", lambda *command: said.get(command[0], ""))
    assert machine.now("SM clock", "memory clock", "power", "temperature") == {
        "SM clock": "1980 MHz",
        "memory clock": "3201 MHz",
        "power": "312.5 W",
        "temperature": "41",
    }
    said.clear()
    assert machine.now("SM clock") == {} and machine.facts() == {}
    assert machine.sources()["commit"] == "unknown" and len(machine.sources()["sources"]) == 16


def test_the_record_names_what_the_figures_depend_on(monkeypatch):
    properties = {"gpu": "NVIDIA H200", "torch": "2.11.0+cu130"}
    said = {
        sys.executable: json.dumps(properties),
        "nvidia-smi": "580.1, 345 MHz, 3201 MHz, 1980 MHz, 76.1 W, 700.00 W, 31",
        "nvcc": "nvcc: NVIDIA (R) Cuda compiler driver\nBuild cuda_13.0.r13.0",
        "git": "0123abc",
    }
    monkeypatch.setattr(machine, "output", lambda *command: said[command[0]])
    facts = machine.facts()
    assert facts.items() >= properties.items() and facts["nvcc"] == "Build cuda_13.0.r13.0"
    assert (facts["driver"], facts["SM clock"], facts["power limit"]) == ("580.1", "345 MHz", "700.00 W")
    assert facts["commit"] == "0123abc with changes"  # git status said something too
    digest = facts["sources"]
    monkeypatch.setattr(machine, "ROOT", ROOT / "csrc")
    assert machine.sources()["sources"] != digest


def test_live_means_that_a_kernel_gives_the_right_result(monkeypatch, capsys):
    reason = SimpleNamespace(kernels="reference", reason="no nvcc")
    monkeypatch.setattr(loaded.ausam_ext, "backends", lambda: {"cuda": reason})
    with pytest.raises(SystemExit, match="the CUDA kernels are not loaded: no nvcc"):
        loaded.main()
    monkeypatch.setattr(loaded.ausam_ext, "backends", lambda: {"cuda": SimpleNamespace(kernels="compiled")})
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    loaded.main()
    assert capsys.readouterr().out == "the CUDA kernels are loaded\n"
    monkeypatch.setattr(loaded.ops, "dlp", lambda loss, perturbed: (loss - perturbed).abs() + 1e-7)
    with pytest.raises(SystemExit, match="dlp gives another result than the reference"):
        loaded.main()
