"""Each method of the step benchmarks trains on the samples that it should, and the papers are quoted."""

import copy
import re
from itertools import count

import pytest
import torch
from torch import nn

pytest.importorskip("PIL")

from ausam_ext import VSAM
from benchmarks.data import Encoded, in_memory
from benchmarks.papers import published
from benchmarks.steps import variants
from benchmarks.steps.epochs import STEPS, Epoch
from benchmarks.steps.family import FAMILY
from benchmarks.steps.measure import IDEAL, measure
from benchmarks.steps.passes import Passes


def tiny():
    return nn.Sequential(nn.Conv2d(3, 2, 8, 8), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 10))


def epoch_of(make, batch_size, encoded=False):
    """And a list of the batches that its network sees."""
    samples = STEPS * batch_size
    epoch = Epoch(make, tiny, Encoded(samples) if encoded else in_memory(samples, "cpu"), batch_size, "cpu")
    seen = []
    epoch.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    return epoch, seen


def shares(name):
    """Of the steps that take a second pass, and of a batch that is trained on, as the name says."""
    vsam, part = re.search(r"vSAM-([\d.]+)", name), re.search(r"AUSAM-([\d.]+)|of ([\d.]+) K", name)
    rate = float(vsam[1]) if vsam else 0.0 if name.startswith("SGD") else 1.0
    return rate, float(part[1] or part[2]) if part else 1.0


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("name", variants.ALL)
def test_methods_train_on_their_share(name, encoded):
    batch_size = 10
    samples = STEPS * batch_size
    epoch, seen = epoch_of(variants.ALL[name].make, batch_size, encoded)
    before = [p.clone() for p in epoch.model.parameters()]
    epoch()
    rate, share = shares(name)
    passes, kept = STEPS * (1 + rate), batch_size * share
    assert epoch.steps == [STEPS] and epoch.taken == [STEPS * rate if "vSAM" in name else 0]
    assert len(seen) == passes and sum(map(len, seen)) == pytest.approx(passes * kept)
    assert not any(torch.equal(p, b) for p, b in zip(epoch.model.parameters(), before, strict=True))
    if "AUSAM" in name:
        adlp = getattr(epoch.method, "method", epoch.method).adlp
        assert adlp.count.sum() - samples == round(STEPS * rate * kept)


@pytest.mark.parametrize("name", variants.columns([0.5], [0.3], captured=True))
def test_replayed_steps_train_as_others_do(name, monkeypatch):
    """A replay is a call here: what a graph holds, in which order, and what the host counts."""
    capturing = False

    def graph(step):
        step()

        def replay():
            nonlocal capturing
            capturing = True
            step()
            capturing = False

        return replay

    monkeypatch.setattr(variants, "graph", graph)
    monkeypatch.setattr(VSAM, "_capturing", lambda self: capturing)
    captured, passes = epoch_of(variants.columns([0.5], [0.3], captured=True)[name].make, 10)
    plain, plain_passes = epoch_of(variants.columns([0.5], [0.3])[name.removesuffix(", graph")].make, 10)
    captured()
    passes.clear()
    if "vSAM" in name:  # an epoch is a window, so that all have as many second passes
        assert captured.method.sam.state_dict()["progress"][1] == 0
    plain.number = count(1)
    for epoch_part, captured_part in zip(
        (plain.model, plain.optimizer, *plain.method.parts.values()),
        (captured.model, captured.optimizer, *captured.method.method.parts.values()),
        strict=True,
    ):
        epoch_part.load_state_dict(copy.deepcopy(captured_part.state_dict()))
    for epoch in (captured, plain):
        torch.manual_seed(1)  # of the batches' order
        epoch()
    assert captured.taken[-1] == plain.taken[-1] and len(passes) == len(plain_passes)
    assert all(map(torch.equal, passes, plain_passes))
    assert all(map(torch.equal, captured.model.parameters(), plain.model.parameters()))
    if "AUSAM" in name:
        assert torch.equal(captured.method.method.adlp.total, plain.method.adlp.total)


def test_rows_compare_with_sam_and_the_ideal():
    chosen = variants.columns([0.4, 0.5], [0.3])
    rows = measure("steps", "tiny", tiny, chosen, rounds=3, device="cpu", batch_size=8)
    by_name = {r["what"]: r for r in rows}
    assert list(by_name) == [
        "SGD", "SAM", "AUSAM-0.4", "AUSAM-0.4 in the loop", "AUSAM-0.5", "AUSAM-0.5 in the loop",
        "vSAM-0.3", "AUSAM-0.5 + vSAM-0.3",
    ]  # fmt: skip
    assert not by_name["SAM"]["ratios"] and list(by_name["SGD"]["ratios"]) == ["SAM"]
    for name in list(by_name)[2:]:
        assert list(by_name[name]["ratios"]) == ["SAM", IDEAL]
        assert by_name[name]["target"] == 0.97 and by_name[name]["against"] == IDEAL
    mixed = by_name["vSAM-0.3"]["columns"][IDEAL]["median"]
    sgd, sam = (by_name[m]["columns"][m]["median"] for m in ("SGD", "SAM"))
    assert min(sgd, sam) * 0.5 < mixed < max(sgd, sam) * 2


def test_every_method_of_the_family_has_a_row_beside_its_ideal():
    rows = measure("family", "tiny", tiny, FAMILY, batch_size=8, rounds=2, device="cpu")
    assert [row["what"] for row in rows] == [name for name, column in FAMILY.items() if column.row]
    assert len(rows) == 11
    for row in rows:
        assert list(row["ratios"]) == ["SAM", IDEAL]
        assert row["against"] == IDEAL and row["target"] == 0.97


@pytest.mark.parametrize(("parts", "samples"), [(("forward", "half"), 24), (("whole", "other"), 16)])
def test_passes_run_on_as_many_samples_as_they_say(parts, samples):
    epoch, seen = epoch_of(lambda task: Passes(task, *parts), 16)
    epoch()
    assert epoch.steps == [10] and sum(map(len, seen)) == 10 * samples


def test_papers_are_quoted_with_their_tables():
    assert published.quote("WideResNet-28-10", 0.5) == "WideResNet-28-10: 179 and 179 (AUSAM Table 2)"
    assert published.quote("small CNN", "vSAM") == (
        "ResNet-18: 140 and 135 at rates 0.30 and 0.35 (vSAM Table 3)"
    )
    assert published.quote("PyramidNet-110", 0.7) is None
