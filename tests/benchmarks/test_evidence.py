"""The evidence on choosing a method: the page says what was measured, and what follows from it."""

from statistics import mean, stdev

import pytest

pytest.importorskip("sklearn")

from benchmarks.evidence import (
    accuracy,
    bounded,
    choosing,
    gradient_error,
    ramp,
    rows,
    start_rate,
    tasks,
)
from benchmarks.spread import standard_errors

ROWS = rows.read(accuracy.RESULTS)
STARTS = ("rate 0.34", "default")  # of vSAM


def test_the_pages_show_the_committed_figures():
    pages = [page.read_text(encoding="utf-8") for page in choosing.PAGES]
    assert pages == [choosing.filled(page, choosing.blocks()) for page in pages]
    assert sum(page.count("<!-- end -->") for page in pages) == len(choosing.blocks())


@pytest.mark.parametrize("task", accuracy.NAMES)
def test_every_method_was_tested_with_the_same_seeds_and_settings(task):
    tested = [row for row in ROWS if row["part"] == "test" and row["task"] == task]
    assert [row["method"] for row in tested] == list(tasks.COMPARED)
    chosen = accuracy.chosen(ROWS, task)
    for row in tested:
        assert (
            row["seeds"] == list(accuracy.SEEDS["test"]) and len(row["accuracy"]) == len(row["seeds"]) >= 10
        )
        assert (row["epochs"], row["learning_rate"], row["rho"]) == (
            chosen.epochs,
            chosen.learning_rate,
            chosen.rho,
        )


def test_what_the_page_says_in_words():
    of = {(row["task"], row["method"]): row for row in ROWS if row["part"] == "test"}

    def above(task, method, other):
        return standard_errors(rows.difference(of[task, method], of[task, other]))

    def share(task, method):
        return sum(of[task, method]["samples"]) / sum(of[task, "SAM"]["samples"])

    plain, wrong, rare = accuracy.NAMES
    for method in ("AUSAM", "AUSAM, probability", "Random half"):
        assert above(rare, method, "SAM") > 2 < above(rare, method, "SGD"), method
    assert abs(above(rare, "AUSAM", "Random half")) < 2 < -above(rare, "AUSAM, weighted", "AUSAM")
    assert above(rare, "AUSAM, probability", "AUSAM") > 0
    assert above(wrong, "AUSAM", "Random half") < -2
    for method in ("AUSAM, weighted", "AUSAM, probability"):
        assert -2 < above(wrong, method, "Random half") < 2 < above(wrong, method, "AUSAM")
    together = "AUSAM, probability, weighted"
    assert max(above(wrong, together, each) for each in ("AUSAM, weighted", "AUSAM, probability")) < 0
    for task in accuracy.NAMES:
        assert max(above(task, method, "SAM") for method in tasks.COMPARED if method != "SAM") > 0
        lost = [mean(rows.difference(of[task, f"vSAM, {start}"], of[task, "SAM"])) for start in STARTS]
        assert abs(lost[0]) < 0.3 and lost[1] < lost[0]
        assert round(share(task, "vSAM, rate 0.34"), 1) == 0.7
        assert round(share(task, "AUSAM, probability + vSAM, rate 0.34"), 1) == 0.4
        assert share(task, "SGD") == 0.5
    for task in (plain, wrong):
        for method in ("AUSAM, weighted", "AUSAM, probability + vSAM, rate 0.34"):
            assert abs(above(task, method, "Random half")) < 2, (task, method)
    clean = {method: mean(of[plain, method]["accuracy"]) for method in tasks.COMPARED}
    assert max(clean.values()) - min(clean.values()) < 0.4 and max(clean, key=clean.get) == "SGD"
    spreads = {method: stdev(of[rare, method]["accuracy"]) for method in tasks.COMPARED}
    assert max(spreads, key=spreads.get) == "AUSAM, probability + vSAM, rate 0.34"


def test_what_the_page_says_of_gradient_errors():
    of = {(r["task"], r["share"], r["scheme"]): r for r in rows.read(gradient_error.RESULTS)}
    fashion, wrong = gradient_error.NAMES
    places = [(task, share) for task in gradient_error.NAMES for share in gradient_error.SHARES]
    better = 0
    for place in places:
        random, plain, weighted = (of[(*place, each)] for each in ("random half", "AUSAM", "AUSAM, weighted"))
        better += sum(plain[column] < random[column] for column in ("error", "error_perturbed"))
        assert plain["sharpness_off"] > random["sharpness_off"]
        assert (plain["sharpness_excess"] > 0) == (place[0] == fashion or place[1] == 0.15)
        assert weighted["error"] < (0.75 if place[0] == fashion else 1.2) * random["error"]
    assert better == 1
    assert of[wrong, 0.9, "AUSAM, weighted"]["error"] < 0.8 * of[wrong, 0.9, "random half"]["error"]


def test_what_the_page_says_of_a_bounded_reuse():
    plain, limited, none = list(bounded.METHODS)[1:]
    of = {(r["task"], r["method"]): r["accuracy"] for r in rows.read(bounded.RESULTS)}
    broken = {key: sum(v < bounded.BROKEN for v in values) for key, values in of.items()}
    assert {len(values) for values in of.values()} == {len(bounded.SEEDS), len(bounded.HARD_SEEDS)}
    hard = bounded.HARD
    assert broken[hard, plain] == broken[hard, limited] > broken[hard, none] == broken[hard, "SAM"] == 0
    assert min(of[hard, none]) > 50 and not any(n for (task, _), n in broken.items() if task != hard)


def test_the_start_of_the_rate_is_as_committed():
    for found in rows.read(start_rate.RESULTS)[::3]:
        expected = [rates[0] for rates in found["rates"]][:1]
        assert [start_rate.rates(found["fluctuation"], found["start"], 0, (1000,))[0]] == expected


def test_the_ramp_of_a_long_run_is_as_committed_and_gives_the_printed_counts():
    of = {row["fluctuation"]: row for row in rows.read(ramp.RESULTS)}
    rates, taken = ramp.ramp(0.1, 0)
    assert (rates, taken) == (of[0.1]["rates"][0], of[0.1]["taken"][0])
    counts = ramp.printed().values()
    assert (min(counts), max(counts)) == (23579, 33251)  # what the page says of the papers
    assert max(of[0.1]["taken"]) < 10_000 and min(of[0.2]["taken"]) > 40_000
    assert min(of[0.14]["taken"]) < min(counts) and max(of[0.16]["taken"]) > max(counts)
