"""The speed column: every method in turns, its limit of what was measured."""

import json

import pytest

from benchmarks.methods import METHODS
from benchmarks.papers import __main__, speed


def test_every_method_has_a_line_and_a_limit():
    names = [name for name in METHODS if name != "Adam"]
    lines = speed.measure("MLP", names, small=False, batch_size=8, rounds=5, device="cpu")
    assert [line["method"] for line in lines] == names
    of = {line["method"]: line for line in lines}
    assert of["SAM"]["SAM%"] == of["SAM"]["limit"] == 100
    limits = {"SGD": 200, "SAM-5": 166.7, "AUSAM-0.4": 250, "K-SAM": 150, "MESA": 150, "Momentum-SAM": 200}
    assert {name: of[name]["limit"] for name in limits} == limits
    for name in ("vSAM", "RST", "AE-SAM"):
        assert 0.1 < of[name]["second passes"] < 0.9
        assert of[name]["limit"] == pytest.approx(200 / (1 + of[name]["second passes"]), rel=0.01)
    assert of["SGD+Info"]["limit"] > 200 > of["SAM+Info"]["limit"] > 100  # fewer batches
    assert all(line["SAM%"] > 0 and line["q1"] <= line["SAM%"] <= line["q3"] for line in lines)


def test_the_command_measures_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "ROUNDS", 3)
    options = ["vsam-4", "--speed", "--made", "--methods", "SGD", "SAM-5", "--networks", "ResNet-18"]
    __main__.main(["run", *options, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    lines = json.loads((tmp_path / "vsam-4-speed.json").read_text(encoding="utf-8"))
    assert [(line["network"], line["method"]) for line in lines] == [
        ("ResNet-18", "SGD"),
        ("ResNet-18", "SAM-5"),
    ]
    assert "| SGD | " in printed and "| 200 |" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["vsam-4-speed.json"]
