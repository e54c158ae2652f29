"""The evidence on choosing a method: what is drawn, trained, counted and decided."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("sklearn")

from benchmarks.evidence import (
    accuracy,
    choosing,
    gradient_error,
    proportional,
    rows,
    tasks,
)


def row(values, part="settings", **others):
    of = {"part": part, "task": "digits", "method": "SAM", "epochs": 20, "learning_rate": 0.05, "rho": 0.1}
    return {
        **of,
        "seeds": list(range(len(values))),
        "accuracy": values,
        "samples": [1] * len(values),
        **others,
    }


SHORT = replace(tasks.DIGITS, network="MLP", epochs=2)  # a tenth of a second


def test_a_stopped_comparison_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    path, trained = tmp_path / "some.json", []
    planned = [({"method": name}, tasks.with_method(SHORT, name), range(3)) for name in ("SGD", "AUSAM")]

    def training(job, data):
        if len(trained) == 4:
            raise RuntimeError("stopped")
        trained.append((job.method, job.seed))
        return tasks.training(job, data)

    monkeypatch.setattr(rows, "training", training)
    with pytest.raises(RuntimeError, match="stopped"):
        rows.fill(path, planned, tmp_path)
    assert trained == [("SGD", 0), ("AUSAM-0.5", 0), ("SGD", 1), ("AUSAM-0.5", 1)]  # seed by seed
    assert [row["seeds"] for row in rows.read(path)] == [[0, 1], [0, 1]]
    trained.clear()
    rows.fill(path, planned, tmp_path)
    assert trained == [("SGD", 2), ("AUSAM-0.5", 2)]
    trained.clear()
    whole = rows.fill(tmp_path / "whole.json", planned[:1], tmp_path)
    assert rows.fill(path, planned, tmp_path)[:1] == rows.read(path)[:1] == whole
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == []


def test_the_parts_of_the_comparison(tmp_path, monkeypatch):
    """Settings and the choice of halves see validation images only; tests, the settings that were chosen."""
    jobs = {}

    def fill(path, planned, data, part):
        jobs[part] = [(key, job, seeds) for key, job, seeds in planned]
        found = [row([90.0, 91.0], **{**key, "part": part}) for key, _, _ in jobs[part]]
        found[-1]["accuracy"] = [92.0, 92.9]  # twice the epochs
        return found

    monkeypatch.setattr(accuracy, "fill", fill)
    accuracy.run(tmp_path / "none.json", ["digits"], tmp_path, ["settings"])
    assert len(jobs["settings"]) == 11 and jobs["settings"][0][1] == replace(tasks.DIGITS, validation=True)
    assert all(job.validation and min(seeds) >= 100 for _, job, seeds in jobs["settings"])
    changed = [(job.epochs, job.learning_rate, job.rho) for _, job, _ in jobs["settings"]]
    assert len(set(changed)) == 11
    chosen = [row([90.0, 91.0]), row([92.0, 92.9], epochs=40)]
    for part, names in (("validation", accuracy.VALIDATED), ("test", tasks.COMPARED)):
        planned = list(accuracy.plan(part, "digits", chosen))
        assert [key["method"] for key, _, _ in planned] == list(names)
        assert all(job.epochs == 40 and job.validation == (part == "validation") for _, job, _ in planned)


def test_error_and_bias_are_those_of_the_gradients_themselves():
    torch.manual_seed(0)
    g = torch.randn(6, 4, dtype=torch.float64)
    shares = torch.rand(50, 6)
    whole = g.mean(0)
    off = shares.double() @ g - whole
    error, bias = gradient_error.error(shares, g @ g.T)
    norm = whole.square().sum()
    assert math.isclose(error, off.square().sum(1).mean() / norm, rel_tol=1e-9)
    # ||mean||^2 minus the variance that the mean of 50 draws has of its own.
    expected = off.mean(0).square().sum() - off.var(0).sum() / 50
    assert math.isclose(bias, expected / norm, rel_tol=1e-9)


def test_weighted_halves_are_unbiased_and_plain_ones_are_not():
    scores = torch.tensor([0.02, 0.1, 0.3, 0.4, 0.9, 2.0, 5.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    off = {}
    for name, draw in gradient_error.schemes(scores).items():
        shares = draw(40_000, generator)
        assert ((shares > 0).sum(1) == 4).all()
        off[name] = ((shares.mean(0) - 1 / 8) / (shares.std(0) / 200)).abs().amax()
    assert max(off[name] for name in ("random half", "AUSAM, weighted", "proportional, weighted")) < 4.5
    assert off["AUSAM"] > 50


def test_in_proportion_scores_keep_their_ratios():
    scores, bounds = proportional.in_proportion(torch.tensor([0.01, 1.0, math.nan, 3.0]))
    assert torch.allclose(scores, torch.tensor([0.17525, 1.0, 3.0, 3.0]))  # a tenth of the mean; the highest
    low, high = scores.amin(), scores.amax()
    s = (scores - low) / (high - low) * (bounds["s_max"] - bounds["s_min"]) + bounds["s_min"]
    assert torch.allclose(s, scores / 3)


def test_gradients_and_losses_of_single_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y = torch.randn(3, 1, 2, 2), torch.tensor([0, 2, 1])
    batch = gradient_error.Batch(model, x, y)
    losses = F.cross_entropy(model(x), y, reduction="none")
    assert torch.allclose(batch.losses(batch.w), losses)
    for loss, found in zip(losses, batch.gradients(batch.w), strict=True):
        expected = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        assert torch.allclose(found, torch.cat([g.flatten() for g in expected]), atol=1e-6)
    half = torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    off, excess = gradient_error.sharpness(batch, batch.gradients(batch.w), half[1:], 0.1)
    assert off < 1e-4 and abs(excess) < 1e-4  # all of the batch: nothing is off
    assert gradient_error.sharpness(batch, batch.gradients(batch.w), half[:1], 0.1)[0] > 1e-3


@pytest.mark.parametrize("name", tasks.COMPARED)
def test_a_method_sees_as_many_samples_as_it_says(name, tmp_path):
    job, method = tasks.with_method(replace(SHORT, epochs=4), name), tasks.COMPARED[name][0]
    run = tasks.training(job, tmp_path)
    for _ in run.steps():
        pass
    whole, half = 4 * 1280, 1280 + 3 * 640
    seen = {
        "SGD": whole,
        "SAM": 2 * whole,
        "vSAM, rate 0.34": 2 * 3840 + 1280,
        "vSAM, default": 2 * 3840 + 1280,
    }
    seen["AUSAM, probability + vSAM, rate 0.34"] = 2 * (1280 + 2 * 640) + 640
    low = seen.get(name, 2 * half)
    samples = run.counts.backward_samples
    assert low <= samples <= low + (1280 if "vSAM" in name else 0)  # the last epoch: second passes by chance
    assert (run.method.adlp.count.sum() > 0) == name.startswith("AUSAM")
    ramp = getattr(run.method.batches, "warmup_epochs", 0)
    assert ramp == 1 or method[:5] != "AUSAM"  # 15 % of 4 epochs


def test_a_rate_that_is_fixed_stays(tmp_path):
    for name in ("vSAM, rate 0.34", "AUSAM, probability + vSAM, rate 0.34"):
        run = tasks.training(tasks.with_method(replace(SHORT, epochs=20), name), tmp_path)
        for _ in run.steps():
            pass
        assert run.method.sam.controller.rate == 0.34, name


def test_halves_in_proportion_are_drawn_anew_in_each_step_and_weigh_as_they_should(tmp_path):
    run = tasks.training(tasks.with_method(SHORT, "AUSAM, proportional, weighted"), tmp_path)
    steps, kept = run.steps(), []
    update = run.method.adlp.update
    run.method.adlp.update = lambda index, *losses: (kept.append(index), update(index, *losses))
    for index in steps:
        if index is not None and run.epoch == 0:
            assert run.method.importance is None and torch.equal(kept[-1], index)
        elif index is not None:
            assert torch.isin(kept[-1], index).all() and len(kept[-1]) == len(index) // 2 == 32
            weights = run.method.importance
            assert weights.mean().item() == pytest.approx(1.0, abs=1e-5) and weights.std() > 0.05
    places = [index.tolist() for index in kept]
    again = tasks.training(tasks.with_method(SHORT, "AUSAM, proportional, weighted"), tmp_path)
    for _ in again.steps():
        pass
    assert all(
        torch.equal(a, b) for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True)
    )
    assert len(places) == 40


def test_data_that_is_not_there_is_left_out_and_named(tmp_path, monkeypatch, capsys):
    from benchmarks.data import folder_of, idx

    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "debian")
    own, names = tmp_path / "Fashion-MNIST", ["Fashion-MNIST", "digits"]
    assert folder_of("Fashion-MNIST", tmp_path) == own and tasks.available(names, tmp_path) == ["digits"]
    assert f"left out: Fashion-MNIST, of which {own} has no files" in capsys.readouterr().out
    (tmp_path / "debian").mkdir()
    assert folder_of("Fashion-MNIST", tmp_path) == tmp_path / "debian"
    assert folder_of("CIFAR-10", tmp_path) == tmp_path / "CIFAR-10"
    own.mkdir()
    assert folder_of("Fashion-MNIST", tmp_path) == own and tasks.available(names, tmp_path) == names
    assert capsys.readouterr().out == ""


def test_settings_change_only_for_what_is_clearly_better():
    first, noise = row([90.0, 92.0, 91.0]), row([95.0, 88.0, 93.0], rho=0.2)
    better, best = row([90.5, 92.6, 91.4], rho=0.05), row([91.0, 93.1, 92.0], epochs=40)
    assert accuracy.chosen([first, noise], "digits") == tasks.TASKS["digits"]
    assert accuracy.chosen([first, noise, better], "digits").rho == 0.05
    assert accuracy.chosen([first, best, noise, better], "digits").epochs == 40


@pytest.mark.parametrize(
    ("differences", "borne_out"),
    [
        ({"digits": [1.0, 1.1, 0.9]}, True),
        ({"digits": [1.0, -1.1, 0.2]}, False),
        ({"digits": [1.0, 1.1, 0.9], "digits, long-tailed": [-1.0, -1.1, -0.9]}, False),
    ],
)
def test_the_rule_for_a_choice_in_proportion(differences, borne_out):
    proportional, weighted = accuracy.PROPORTIONAL
    found = []
    for task, d in differences.items():
        found.append(row([90.0] * 3, part="validation", method=weighted, task=task))
        found.append(row([90 + x for x in d], part="validation", method=proportional, task=task))
    assert ("By the rule it gets" in choosing.verdict(found)) == borne_out
    assert ("By the rule it does not get" in choosing.verdict(found)) != borne_out
