"""Fashion-MNIST: how settings are chosen, what is trained, and a page that says what came out."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.data import write
from benchmarks.markdown import filled
from benchmarks.methods import METHODS
from benchmarks.papers import __main__, evidence, fashion
from benchmarks.problems import problem

TRIED = [
    {"method": "SAM", "learning_rate": 0.1, "rho": 0.1, "seeds": [100, 101], "accuracy": [90.0, 92.0]},
    {"method": "SAM", "learning_rate": 0.1, "rho": 0.05, "seeds": [100, 101], "accuracy": [91.0, 91.0]},
    {"method": "SAM", "learning_rate": 0.05, "rho": 0.1, "seeds": [100, 101], "accuracy": [93.0, 88.0]},
    {"method": "SGD", "learning_rate": 0.05, "rho": 0.0, "seeds": [100, 101], "accuracy": [80.0, 81.0]},
    {"method": "SGD", "learning_rate": 0.1, "rho": 0.0, "seeds": [100, 101], "accuracy": [80.0, 82.0]},
]


def test_settings_are_those_with_the_highest_mean_and_the_smaller_of_two_that_are_level():
    assert fashion.chosen(TRIED) == {"SAM": (0.1, 0.05), "SGD": (0.1, 0.0)}


def test_settings_are_chosen_without_the_test_images_and_with_other_seeds():
    trials = fashion.trials()
    assert {job.seed for job in trials} == {100, 101} and all(job.validation for job in trials)
    assert len({job.key for job in trials}) == len(trials) == 2 * (4 + 2)
    tested = [fashion.job(row, seed, None, False) for row in fashion.rows() for seed in range(5)]
    assert not any(job.validation or job.seed in fashion.SEEDS for job in tested)
    settings = [
        {(job.epochs, job.size, job.batch_size, job.weight_decay) for job in of} for of in (trials, tested)
    ]
    assert settings[0] == settings[1] == {(10, 10_000, 128, 5e-4)}


def test_every_method_is_trained_and_a_half_has_a_fair_control():
    rows = list(fashion.rows())
    assert {row.method for row in rows} == set(METHODS) - {"Adam"}
    of = {
        evidence.picture.name(row.__dict__ | {"quoted": None}): fashion.job(row, 0, None, False)
        for row in rows
    }
    assert len(of) == len(rows) == len(METHODS) - 1 + 4
    assert of["SAM+Random, full_epochs 1"].settings == {"full_epochs": 1}
    assert of["AUSAM-0.5, weighted True"].settings == {**of["AUSAM-0.5"].settings, "weighted": True}
    assert of["AUSAM-0.5"].settings["warmup_epochs"] == 2  # 15 % of 10
    assert (of["vSAM"].settings["initial_rate"], of["vSAM"].settings["alpha"]) == (0.34, 0.0)
    best = fashion.chosen()
    for job in of.values():
        unperturbed = job.method in ("SGD", "SGD+Info", "SAF", "MESA")
        assert (job.learning_rate, job.rho) == best["SGD" if unperturbed else "SAM"]
    # MESA's average reaches back over 5,000 of the papers' 78,200 steps, and over as large a share here.
    steps = 10 * 79
    assert 1 / (1 - of["MESA"].settings["decay"]) == pytest.approx(steps * 5000 / 78200, rel=0.02)


def test_the_whole_set_takes_all_training_images():
    row = next(fashion.rows())
    assert fashion.job(row, 0, None, False, whole=True) == replace(
        fashion.job(row, 0, None, False), size=None
    )


def test_images_come_from_the_first_five_sixths_for_validation_and_for_the_test(tmp_path):
    write("Fashion-MNIST", tmp_path / "Fashion-MNIST", samples=120)
    for validation in (False, True):
        job = replace(fashion.trials()[0], made=True, size=50, validation=validation)
        of = problem(job, tmp_path, torch.device("cpu"))
        whole = replace(job, size=None, validation=False)
        known = problem(whole, tmp_path, torch.device("cpu")).train.x.flatten(1).tolist()
        assert len(of.train) == 50 and all(x in known[:100] for x in of.train.x.flatten(1).tolist())
        assert (of.test.x.flatten(1).tolist() == known[100:]) == validation


def test_it_is_trained_and_shown_from_made_files(tmp_path, capsys):
    methods = ["SGD", "SAM", "SAM+Random", "AUSAM-0.5"]
    options = ["fashion", "--made", "--seeds", "3", "--methods", *methods, "--out", str(tmp_path)]
    __main__.main(["run", *options, "--data", str(tmp_path / "data")])
    printed = capsys.readouterr().out
    lines = [line for line in json.loads((tmp_path / "fashion.json").read_text()) if line["seeds"]]
    assert [line["method"] for line in lines] == ["SGD", "SAM", *["SAM+Random"] * 2, *["AUSAM-0.5"] * 3]
    assert "AUSAM-0.5, weighted True" in printed
    of = evidence.by_name(lines)
    costs = {name: evidence.cost(line, of["SAM"]) for name, line in of.items()}
    assert costs["SGD"] == costs["Random half, from the first epoch on"] == 0.5
    assert costs["Random half"] == costs["AUSAM-0.5"] == 0.75  # the first of two epochs is whole
    assert evidence.fashion_table(lines).count("\n") == 2 + len(lines)


def line(method, last, seeds=(0, 1, 2)):
    return {"method": method, "settings": {}, "quoted": None, "seeds": list(seeds), "last": list(last)}


def test_differences_are_of_the_same_seeds():
    lines = [line("SAM", [90.0, 91.0, 92.0]), line("SGD", [89.5, 91.5], seeds=(2, 0))]
    of = evidence.by_name([lines[0], line("SGD", [91.5, 89.5], seeds=(0, 2))])
    assert of["SAM"]["seeds"] == [0, 2] and evidence.difference(of["SGD"], of["SAM"]) == [1.5, -2.5]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.1, 0.2, 0.3], "above"),
        ([-0.1, -0.2, -0.3], "below"),
        ([0.1, -0.2, 0.3], "level"),
        ([1.0, 1.1], "too few"),
    ],
)
def test_words_follow_from_the_figures(values, said):
    assert evidence.verdict(values).startswith(said)


def test_the_page_says_what_is_in_the_results():
    page = evidence.PAGE.read_text(encoding="utf-8")
    assert page == filled(page, evidence.blocks())
    assert page.count("<!-- end -->") == len(evidence.blocks())


def test_every_method_was_run_with_the_same_seeds_and_the_chosen_settings():
    lines = evidence.read(evidence.FASHION)
    assert len(lines) == len(list(fashion.rows()))
    for found, row in zip(lines, fashion.rows(), strict=True):
        assert (found["method"], found["settings"]) == (row.method, row.settings)
        assert found["seeds"] == lines[0]["seeds"] == list(range(len(found["seeds"])))
        job = fashion.job(row, 0, None, False)
        assert found["trained with"] == {name: getattr(job, name) for name in found["trained with"]}


def test_what_the_page_says_in_words_of_its_own():
    of = evidence.by_name(evidence.read(evidence.FASHION))
    assert evidence.verdict(evidence.difference(of["SAM"], of["SGD"])) != "above"
    tried = evidence.read(fashion.RESULTS)["rows"]
    sam, sgd = (max(sum(r["accuracy"]) for r in tried if r["method"] == m) for m in ("SAM", "SGD"))
    assert sam < sgd and fashion.chosen()["SAM"][1] == min(fashion.RHOS)
