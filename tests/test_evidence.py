"""The evidence on choosing a method: what is drawn, counted and decided; the page shows what was measured."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # last: the package is the installed one

pytest.importorskip("sklearn")

from benchmarks.evidence import accuracy, bounded, choosing, gradient_error, ramp, start_rate, tasks, variants  # noqa: E402

ROWS = json.loads(accuracy.RESULTS.read_text(encoding="utf-8"))["rows"]


def test_the_page_shows_the_committed_figures():
    page = choosing.PAGE.read_text(encoding="utf-8")
    assert page == choosing.filled(page)
    assert page.count("<!-- end -->") == len(choosing.blocks())


@pytest.mark.parametrize("task", accuracy.NAMES)
def test_every_method_was_tested_with_the_same_seeds_and_settings(task):
    rows = [row for row in ROWS if row["part"] == "test" and row["task"] == task]
    assert [row["method"] for row in rows] == list(variants.VARIANTS)
    chosen = accuracy.chosen(ROWS, task)
    for row in rows:
        assert row["seeds"] == list(accuracy.TEST_SEEDS) and len(row["accuracy"]) == len(row["seeds"]) >= 10
        assert (row["epochs"], row["learning_rate"], row["rho"]) == (
            chosen.epochs,
            chosen.learning_rate,
            chosen.rho,
        )


def test_what_the_page_says_in_words():
    of = {(row["task"], row["method"]): row for row in ROWS if row["part"] == "test"}

    def above(task, method, other):
        return accuracy.standard_errors(accuracy.difference(of[task, method], of[task, other]))

    def share(task, method):
        return sum(of[task, method]["samples"]) / sum(of[task, "SAM"]["samples"])

    _, wrong, rare = accuracy.NAMES
    assert above(rare, "AUSAM", "Random half") > 2 < above(rare, "AUSAM", "SAM")
    assert (
        above(rare, "AUSAM, weighted", "Random half") < 2 > above(rare, "AUSAM, probability", "Random half")
    )
    assert above(rare, "AUSAM, probability + vSAM, rate 0.34", "Random half") < -1.5
    assert above(wrong, "AUSAM", "Random half") < -2
    for method in ("AUSAM, weighted", "AUSAM, probability"):
        assert -2 < above(wrong, method, "Random half") < 2 < above(wrong, method, "AUSAM")
    assert abs(above(wrong, "vSAM, rate 0.34", "SAM")) < 2 < -above(wrong, "vSAM, default", "SAM")
    for task in accuracy.NAMES:
        assert round(share(task, "vSAM, rate 0.34"), 1) == 0.7
        assert round(share(task, "AUSAM, probability + vSAM, rate 0.34"), 1) == 0.4
        assert share(task, "SGD") == 0.5
        assert (
            accuracy.standard_errors(
                accuracy.difference(of[task, "AUSAM, weighted"], of[task, "Random half"])
            )
            < 2
        )


def test_what_the_page_says_of_a_bounded_reuse():
    rows = json.loads(bounded.RESULTS.read_text(encoding="utf-8"))["rows"]
    plain, limited, none = list(bounded.METHODS)[1:]
    of = {(r["task"], r["method"]): r["accuracy"] for r in rows}
    broken = {key: sum(v < bounded.BROKEN for v in values) for key, values in of.items()}
    assert {len(values) for values in of.values()} == {len(bounded.SEEDS), len(bounded.HARD_SEEDS)}
    hard = bounded.HARD
    assert broken[hard, plain] > broken[hard, limited] > broken[hard, none] == broken[hard, "SAM"] == 0
    assert min(of[hard, none]) > 80 and not any(n for (task, _), n in broken.items() if task != hard)


def row(values, part="settings", **others):
    of = {"part": part, "task": "digits", "method": "SAM", "epochs": 20, "learning_rate": 0.05, "rho": 0.1}
    return {
        **of,
        "seeds": list(range(len(values))),
        "accuracy": values,
        "samples": [1] * len(values),
        **others,
    }


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
    rows = []
    for task, d in differences.items():
        rows.append(row([90.0] * 3, part="validation", method=weighted, task=task))
        rows.append(row([90 + x for x in d], part="validation", method=proportional, task=task))
    assert ("is worth" in choosing.verdict(rows)) == borne_out
    assert ("is not worth" in choosing.verdict(rows)) != borne_out


def test_a_stopped_comparison_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    path, done = tmp_path / "accuracy.json", []

    def train(variant, task, train_set, seed):
        if len(done) == 30:
            raise RuntimeError("stopped")
        done.append((task, seed))
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), None, 7

    monkeypatch.setattr(accuracy, "train", train)
    with pytest.raises(RuntimeError, match="stopped"):
        accuracy.run(path, ["digits"], ["settings"])
    assert sum(len(row["seeds"]) for row in json.loads(path.read_text())["rows"]) == 30
    first, done[:] = set(done), []
    accuracy.run(path, ["digits"], ["settings"])
    assert len(first) + len(done) == 11 * len(accuracy.SETTING_SEEDS)
    assert not first & set(done)
    assert accuracy.run(path, ["digits"], ["settings"]) == json.loads(path.read_text())["rows"]


@pytest.mark.parametrize("name", accuracy.NAMES)
def test_no_validation_image_and_no_training_image_is_a_test_image(name):
    split = tasks.TASKS[name].split
    train, test = split(3, False)
    known = [x / x.std() - (x / x.std()).mean() for x in (*train.x, *test.x)]  # whatever the scale
    learnt, tested = known[: len(train)], torch.stack(known[len(train) :]).flatten(1)
    for images in split(101, True):
        learnt += [x / x.std() - (x / x.std()).mean() for x in images.x]
    assert torch.cdist(torch.stack(learnt).flatten(1), tested).amin() > 1e-3
    assert test.y.bincount().amin() > 45


def test_labels_and_classes_are_changed_as_described():
    clean, wrong = tasks.digits(0, False)[0], tasks.wrong_labels(0, False)[0]
    assert torch.equal(clean.x, wrong.x) and (clean.y != wrong.y).sum() == 320
    assert tasks.long_tailed(0, False)[0].y.bincount().tolist() == [
        min(round(128 * 50 ** (-i / 9)), int((clean.y == i).sum())) for i in range(10)
    ]


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
    scores, bounds = variants.in_proportion(torch.tensor([0.01, 1.0, math.nan, 3.0]))
    assert torch.allclose(scores, torch.tensor([0.17525, 1.0, 3.0, 3.0]))  # a tenth of the mean; the highest
    low, high = scores.amin(), scores.amax()
    s = (scores - low) / (high - low) * (bounds["s_max"] - bounds["s_min"]) + bounds["s_min"]
    assert torch.allclose(s, scores / 3)


def test_gradients_and_losses_of_single_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y = torch.randn(3, 1, 2, 2), torch.tensor([0, 2, 1])
    batch = gradient_error.Batch(model, SimpleNamespace(x=x, y=y))
    losses = F.cross_entropy(model(x), y, reduction="none")
    assert torch.allclose(batch.losses(batch.w), losses)
    for loss, found in zip(losses, batch.gradients(batch.w), strict=True):
        expected = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        assert torch.allclose(found, torch.cat([g.flatten() for g in expected]), atol=1e-6)
    half = torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    off, excess = gradient_error.sharpness(batch, batch.gradients(batch.w), half[1:], 0.1)
    assert off < 1e-4 and abs(excess) < 1e-4  # all of the batch: nothing is off
    assert gradient_error.sharpness(batch, batch.gradients(batch.w), half[:1], 0.1)[0] > 1e-3


def test_the_start_of_the_rate_is_as_committed():
    rows = json.loads(start_rate.RESULTS.read_text(encoding="utf-8"))["rows"]
    for found in rows[::3]:
        expected = [rates[0] for rates in found["rates"]][:1]
        assert [start_rate.rates(found["fluctuation"], found["start"], 0, (1000,))[0]] == expected


def test_the_ramp_of_a_long_run_is_as_committed_and_gives_the_printed_counts():
    rows = {row["fluctuation"]: row for row in json.loads(ramp.RESULTS.read_text(encoding="utf-8"))["rows"]}
    rates, taken = ramp.ramp(0.1, 0)
    assert (rates, taken) == (rows[0.1]["rates"][0], rows[0.1]["taken"][0])
    counts = ramp.printed().values()
    assert (min(counts), max(counts)) == (23579, 33251)  # what the page says of the papers
    assert max(rows[0.1]["taken"]) < 10_000 and min(rows[0.2]["taken"]) > 40_000
    assert min(rows[0.14]["taken"]) < min(counts) and max(rows[0.16]["taken"]) > max(counts)


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_a_method_sees_as_many_samples_as_it_says(name):
    torch.manual_seed(0)
    task = tasks.Task(lambda *_: None, lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 10)), 4, 8, 0.1, 0.1)
    images = tasks.Images(torch.randn(32, 1, 4, 4), torch.randint(0, 10, (32,)))
    _, adlp, samples = variants.train(variants.VARIANTS[name], task, images, 0)
    whole, half = 4 * 32, 32 + 3 * 16
    seen = {"SGD": whole, "SAM": 2 * whole, "vSAM, rate 0.34": 2 * 96 + 32, "vSAM, default": 2 * 96 + 32}
    seen["AUSAM, probability + vSAM, rate 0.34"] = 2 * (32 + 2 * 16) + 16
    low = seen.get(name, 2 * half)
    assert low <= samples <= low + (32 if "vSAM" in name else 0)  # the last epoch: second passes by chance
    assert (adlp.count.sum() > 0) == (variants.VARIANTS[name].score is not None)
