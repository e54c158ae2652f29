"""Each method of the step benchmarks trains on the samples that it should, and the papers are quoted."""

import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))  # last: the package is the installed one

pytest.importorskip("PIL")

from benchmarks.papers import published
from benchmarks.steps import __main__ as steps
from benchmarks.steps import family, measure, passes


def tiny():
    return nn.Sequential(nn.Conv2d(3, 2, 8, 8), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 10))


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("method", measure.ALL, ids=lambda m: m.name)
def test_methods_train_on_their_share(method, encoded):
    batch_size = 10
    samples = measure.STEPS * batch_size
    data = measure.Encoded(samples) if encoded else measure.InMemory(samples, "cpu")
    epoch = measure.Epoch(method, tiny, data, "cpu", batch_size)
    before = [p.clone() for p in epoch.model.parameters()]
    seen = []
    epoch.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    epoch()
    passes = measure.STEPS * (1 + method.rate)
    kept = batch_size * (method.alpha or method.share)
    assert epoch.rate == pytest.approx(method.rate)
    assert len(seen) == passes and sum(map(len, seen)) == pytest.approx(passes * kept)
    assert not any(torch.equal(p, b) for p, b in zip(epoch.model.parameters(), before, strict=True))
    if method.alpha:
        assert epoch.adlp.count.sum() - samples == round(measure.STEPS * method.rate * kept)


def test_rows_compare_with_sam_and_the_ideal():
    chosen = measure.methods([0.4, 0.5], [0.3])
    rows = measure.measure("tiny", tiny, chosen, encoded=False, rounds=3, device="cpu", batch_size=8)
    by_name = {r["what"]: r for r in rows}
    assert list(by_name) == [
        "SGD", "SAM", "AUSAM-0.4", "AUSAM-0.4 in the loop", "AUSAM-0.5", "AUSAM-0.5 in the loop",
        "vSAM-0.3", "AUSAM-0.5 + vSAM-0.3",
    ]  # fmt: skip
    assert not by_name["SAM"]["ratios"] and list(by_name["SGD"]["ratios"]) == ["SAM"]
    for name in list(by_name)[2:]:
        assert list(by_name[name]["ratios"]) == ["SAM", measure.IDEAL]
        assert by_name[name]["target"] == 0.97 and by_name[name]["against"] == measure.IDEAL
    mixed = by_name["vSAM-0.3"]["columns"][measure.IDEAL]["median"]
    sgd, sam = (by_name[m]["columns"][m]["median"] for m in ("SGD", "SAM"))
    assert min(sgd, sam) * 0.5 < mixed < max(sgd, sam) * 2


def test_every_method_of_the_family_has_a_row_beside_its_ideal():
    rows = family.measure("tiny", tiny, batch_size=8, rounds=2, instances=1, device="cpu")
    assert [row["what"] for row in rows] == list(family.FAMILY)
    for row in rows:
        assert list(row["ratios"]) == ["SAM", family.IDEAL]
        assert row["against"] == family.IDEAL and row["target"] == 0.97


@pytest.mark.parametrize(("parts", "samples"), [(("forward", "half"), 24), (("whole", "other"), 16)])
def test_passes_run_on_as_many_samples_as_they_say(parts, samples):
    seen, epoch = [], passes.Epoch(lambda task: passes.Passes(task, *parts), tiny, 16, "cpu")
    epoch.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    epoch()
    assert epoch.steps == [10] and sum(seen) == 10 * samples


def test_settings_that_do_not_fit_the_time_are_left_out_and_said(monkeypatch, capsys):
    saved = []
    monkeypatch.setattr(steps, "save", lambda rows, device: saved.append(list(rows)))

    def setting(seconds, *rows):
        return lambda device: (time.sleep(seconds), list(rows))[1]

    chosen = [setting(0.0, "a", "b"), setting(0.1, "c"), setting(30.0, "d"), setting(0.0)]
    assert steps.run(chosen, "cpu", seconds=1.0) == 2
    assert saved == [["a", "b"], ["a", "b", "c"]]
    assert "1 s are over: 2 of 4 settings are left out" in capsys.readouterr().out
    assert steps.run(chosen[:2], "cpu") == 2 and saved[-1] == ["a", "b", "c"]


def test_papers_are_quoted_with_their_tables():
    assert published.quote("WideResNet-28-10", 0.5) == "WideResNet-28-10: 179 and 179 (AUSAM Table 2)"
    assert published.quote("small CNN", "vSAM") == (
        "ResNet-18: 140 and 135 at rates 0.30 and 0.35 (vSAM Table 3)"
    )
    assert published.quote("PyramidNet-110", 0.7) is None
