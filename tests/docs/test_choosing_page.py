"""What docs/choosing.md says of arguments is what signatures say; its figures are those of their sources."""

import json
import re
from ast import literal_eval
from inspect import Parameter, signature
from statistics import mean

import pytest
from helpers import ROOT

from ausam_ext import SAM, VSAM, AUSAMBatchSampler

for module in ("sklearn", "tqdm"):
    pytest.importorskip(module)

from benchmarks.evidence import rho  # noqa: E402

PAGE = (ROOT / "docs/choosing.md").read_text(encoding="utf-8")
# What is the same for all methods, or nothing to choose.
ELSEWHERE = {"model", "params", "maximize", "groups", "scaler", "seed", "adlp"}
ELSEWHERE |= {"shuffle", "drop_last", "rank", "num_replicas"}


def section(heading):
    return re.split(r"^##", re.split(rf"^###? {heading}\n", PAGE, flags=re.MULTILINE)[1], flags=re.MULTILINE)[
        0
    ]


def cells(text):
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if not set(row[0]) <= set("-|")]


@pytest.mark.parametrize("method", [SAM, VSAM, AUSAMBatchSampler], ids=lambda method: method.__name__)
def test_the_table_has_every_argument_with_its_default(method):
    parameters = signature(method).parameters
    shown = {}
    for row in cells(section(method.__name__))[1:]:
        *_, argument, _, default, _ = row
        name = re.fullmatch(r"(?:\| )?`(\w+)`", argument)[1]
        given = re.match(r"`(.*?)`", default)
        shown[name] = literal_eval(given[1]) if given else Parameter.empty
        assert given or default.startswith("none: you have to say it"), name
    assert shown == {name: p.default for name, p in parameters.items() if name not in ELSEWHERE}


def test_accuracy_by_alpha_is_that_of_the_paper_and_of_the_committed_run():
    tables = json.loads((ROOT / "benchmarks/papers/tables.json").read_text(encoding="utf-8"))["tables"]
    (first,) = (table for table in tables if table["id"] == "ausam-1")
    printed = {(row["method"], row["model"]): row["accuracy"]["mean"] for row in first["rows"]}
    runs = json.loads((ROOT / "benchmarks/results/evidence/fashion.json").read_text(encoding="utf-8"))
    rows = cells(section("alpha in AUSAM"))
    assert [row[0] for row in rows[1:]] == ["0.4", "0.5", "0.6", "0.7", "SAM"]
    for alpha, *figures in rows[1:]:
        method = alpha if alpha == "SAM" else f"AUSAM-{alpha}"
        (run,) = (run for run in runs if run["method"] == method and not run["settings"])
        expected = [printed[method, model] for model in ("ResNet-18", "WideResNet-28-10")]
        assert [float(figure) for figure in figures] == [*expected, round(mean(run["last"]), 2)]


def test_what_the_page_says_of_the_start_and_of_rho_and_learning_rate():
    found = json.loads((ROOT / "benchmarks/results/evidence/start_rate.json").read_text(encoding="utf-8"))
    after_5000 = [rates[1] for row in found["rows"] if row["start"] == 1 for rates in row["rates"]]
    assert (round(min(after_5000), 2), round(max(after_5000), 2)) == (0.02, 0.28)
    found = json.loads((ROOT / "benchmarks/results/evidence/accuracy.json").read_text(encoding="utf-8"))
    wrong = {"part": "settings", "task": "digits, a quarter wrong", "epochs": 20, "rho": 0.2}
    of = {row["learning_rate"]: row["accuracy"] for row in found["rows"] if wrong.items() <= row.items()}
    assert min(of[0.05]) < 20 and min(of[0.025]) > 90 and min(of[0.1]) > 75


def test_what_the_page_says_of_rho_by_network_and_optimizer():
    rows = rho.read(rho.RESULTS)
    assert all(row["seeds"] == list(rho.SEEDS) and len(row["accuracy"]) == len(row["seeds"]) for row in rows)

    def of(network, optimizer, radius):
        return rho.best(rows, network, optimizer, radius)

    def top(network, optimizer):
        return max((of(network, optimizer, each) for each in rho.RHOS), key=lambda row: mean(row["accuracy"]))

    cnn, mlp, transformer = rho.NETWORKS
    lost = {}
    for network in (cnn, mlp):
        for optimizer in rho.OPTIMIZERS:
            best, none = top(network, optimizer), of(network, optimizer, 0)
            assert best["rho"] in (0.1, 0.2)
            lost[network, optimizer] = round(mean(best["accuracy"]) - mean(none["accuracy"]), 1)
    assert (lost[cnn, "AdamW"], lost[cnn, "SGD"]) == (1.5, 5.0)
    for network in rho.NETWORKS:
        for optimizer in rho.OPTIMIZERS:
            below = rho.difference(of(network, optimizer, 0.5), top(network, optimizer))
            assert rho.standard_errors(below) < -2
    for radius in rho.RHOS[1:-1]:
        off = rho.difference(of(transformer, "AdamW", radius), of(transformer, "AdamW", 0))
        assert abs(rho.standard_errors(off)) < 2
    for radius in (0.1, 0.2, 0.5):
        off = rho.difference(of(transformer, "SGD", radius), of(transformer, "SGD", 0))
        assert rho.standard_errors(off) < -2
    for optimizer, (_, rates) in rho.OPTIMIZERS.items():
        assert of(transformer, optimizer, 0)["learning_rate"] == rates[-1]


def test_a_run_of_the_comparison_gives_the_committed_accuracy_again():
    for row in rho.read(rho.RESULTS):
        if row["network"].startswith("MLP") and row["rho"] == 0.1 and row["learning_rate"] in (0.05, 1e-3):
            again = rho.train(row["network"], row["optimizer"], row["learning_rate"], row["rho"], seed=0)
            assert again == pytest.approx(row["accuracy"][0], abs=1.0)  # of 320 images, three
