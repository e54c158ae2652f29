"""What docs/monitoring.md says of good and bad runs is what the committed runs show; a run shows it again."""

import importlib.util
import json
import math
import re
import sys

import pytest
import torch
from helpers import ROOT
from torch import nn

from ausam_ext import ADLP, VSAM, AUSAMBatchSampler, Monitor

for module in ("matplotlib", "PIL", "sklearn"):
    pytest.importorskip(module)

PAGE = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
SCRIPT = ROOT / "docs/figures/monitoring.py"
RUNS = json.loads(SCRIPT.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("monitoring_figures", SCRIPT)
    loaded = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "path", [*sys.path])
        patched.setitem(sys.modules, spec.name, loaded)  # where dataclasses look
        spec.loader.exec_module(loaded)
        yield loaded


def test_the_table_has_every_value_of_a_monitor():
    torch.manual_seed(0)
    model, batches = nn.Linear(2, 1), AUSAMBatchSampler(ADLP(4), 4)
    vsam = VSAM(model, warmup_steps=1)
    monitor = Monitor(vsam, batches)

    def closure():
        model.zero_grad()
        losses = model(torch.ones(4, 2)).square().squeeze(1)
        losses.mean().backward()
        return losses

    losses = vsam.backward(closure)
    monitor.update(*losses)
    batches.adlp.update(torch.arange(4), *losses)
    found = {name for name in monitor.compute() if not re.search("adlp_(10%|median|90%)", name)}
    rows = re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == found


def test_each_figure_is_drawn_from_the_committed_runs_and_is_small(script):
    figures = script.drawn(RUNS)
    assert list(figures) == re.findall(r"figures/monitoring-(\w+)\.png", PAGE)
    for name in figures:
        assert (SCRIPT.parent / f"monitoring-{name}.png").stat().st_size < 60_000


@pytest.mark.parametrize("name", ["rho 2", "rho 0.3", "wrong labels"])
def test_a_run_gives_the_committed_values_again(script, name):
    again = script.train(script.RUNS[name], epochs=2)
    for value, committed in RUNS[name].items():
        assert again[value] == pytest.approx(committed[:2], rel=0.02, nan_ok=True), value


def test_what_the_page_says_of_sharpness_and_norms():
    good, large, small = (RUNS[name] for name in ("SAM", "rho 2", "rho 0.0005"))
    assert min(good["sharpness"]) > 0 and good["sharpness"][-1] < good["sharpness"][0] / 3
    assert min(b / a for a, b in zip(good["sharpness"], large["sharpness"], strict=True)) > 4
    assert min(large["loss"]) > 0.99 * large["loss"][0] > 100 * good["loss"][-1]
    assert small["sharpness"][0] < 0.001 * small["loss"][0] < 0.1 * good["sharpness"][0]
    high = RUNS["learning rate 2"]
    assert good["grad_norm"][-1] < max(good["grad_norm"]) / 3
    assert high["grad_norm"][0] > 100 * max(good["grad_norm"])
    assert max(high["grad_norm"][2:]) < 0.5 and min(high["loss"]) > math.log(10)  # that of guessing
    assert all(map(math.isnan, RUNS["learning rate 20"]["grad_norm"]))


def test_what_the_page_says_of_vsam():
    good, large, none = (RUNS[name] for name in ("vSAM", "rho 0.3", "rho 0.3, gamma 0"))
    fits = 8  # epochs in which the sound run has a loss above 0.05
    assert min(good["loss"][:fits]) > 0.05
    assert max(good["psf_ratio"][:fits]) < 0.7 < 1 < min(large["psf_ratio"][2:fits])
    assert min(a / b for a, b in zip(large["loss"][3:fits], none["loss"][3:fits], strict=True)) > 1.3
    assert large["loss"][-1] > 2 * none["loss"][-1]
    assert min(of["psf_ratio"][-1] for of in (good, large, none)) > 1
    fixed, default, climbs = (
        RUNS[n] for n in ("initial_rate=0.34, alpha=0", "defaults", "initial_rate=0.34")
    )
    assert set(fixed["rate"]) == {0.34} and max(default["rate"]) < 0.1 and climbs["rate"][-1] == 0.8
    for of in (fixed, default, climbs):
        off = [share - rate for share, rate in zip(of["second_passes"], of["rate"], strict=True)]
        assert off[0] > 0.3 and max(map(abs, off[1:])) < 0.15 and abs(sum(off[1:])) / len(off[1:]) < 0.02


def test_what_the_page_says_of_ausam():
    good, late, wrong = (RUNS[name] for name in ("AUSAM", "warmup_epochs=30", "wrong labels"))
    assert good["s_max"][3] == good["s_max"][-1] == 1 > late["s_max"][-1] > late["s_max"][-2]
    assert set(good["visited"]) == {1} and set(RUNS["half"]["visited"]) == {0.5}
    assert set(RUNS["positions"]["visited"]) == {0.05}
    assert good["adlp_median"][-1] < max(good["adlp_median"]) / 3
    assert wrong["adlp_median"][-1] > 0.9 * max(wrong["adlp_median"])
    assert good["adlp_max"][-1] > 5 * good["adlp_90%"][-1]
