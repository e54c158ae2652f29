"""The demo: what it counts, what it writes, and what it refuses."""

import contextlib
import io
import json
import struct
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

for module in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(module)

from benchmarks.data import digits  # noqa: E402
from benchmarks.demo import __main__ as command  # noqa: E402
from benchmarks.demo import compare, figure, report, rows  # noqa: E402
from benchmarks.demo.compare import Run  # noqa: E402
from benchmarks.spread import paired  # noqa: E402
from benchmarks.training import Training  # noqa: E402

EPOCHS = 3
CPU = torch.device("cpu")
WRONG, LONG_TAILED = rows.DATA
# AUSAM's first epoch is whole, and that of a random half; the first three of vSAM are SAM. With wrong labels:
# 1,280 images in 20 batches of 64. Long-tailed: 126 (all that there are of class 0), 83, 54, 35, 22, 15, 9,
# 6, 4 and 3 images, 357 in all, in 5 batches of 64 and one of 37, of which AUSAM keeps 5 times 32 and 18.
SAMPLES = {
    "SGD": (3 * 1280, 3 * 357),
    "SAM": (2 * 3 * 1280, 2 * 3 * 357),
    "SAM+Random": (2 * (1280 + 640 + 640), 2 * (357 + 178 + 178)),
    "AUSAM": (2 * (1280 + 640 + 640), 2 * (357 + 178 + 178)),
    "vSAM": (2 * 3 * 1280, 2 * 3 * 357),
    "AUSAM-probability+vSAM": (2 * (1280 + 640 + 640), 2 * (357 + 178 + 178)),
}


def run_demo(*arguments):
    """Returns what it printed. The number of threads, which it sets, is put back."""
    threads, printed = torch.get_num_threads(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            command.main([str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)
    return printed.getvalue()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "new" / "folder"
    printed = run_demo("--seeds", 1, "--epochs", EPOCHS, "--methods", *SAMPLES, "--output", output)
    return output, printed


def read_tables(text):
    """Of each data set."""
    tables = []
    for part in text.split(" epochs:\n")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert all(set(cell) <= set("-:") for cell in lines[1])
        tables.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return tables


def train(method, data, epochs, problem=None):
    """A training that is still to be run, and where it will write."""
    job, run = rows.job(method, data, epochs, 0), Run(data.name, method, 0)
    problem = problem or compare._problem(job, CPU)
    return run, compare.train(run, job, problem, compare.marks(data, 0), CPU)


def test_tables_have_a_row_for_each_method_with_the_passes_counted_by_hand(demo):
    output, printed = demo
    text = (output / "tables.md").read_text(encoding="utf-8")
    assert text in printed
    assert "Digits, a quarter wrong, 3 epochs:" in text and "Digits, long-tailed, 3 epochs:" in text
    runs = report.grouped(report.read(output / "demo.json"))
    for i, (table, group) in enumerate(zip(read_tables(text), runs.values(), strict=True)):
        assert [row["Method"] for row in table] == list(SAMPLES) == list(group)
        for row in table:
            (run,) = group[row["Method"]]
            samples = SAMPLES[row["Method"]]
            assert run.samples == samples[i]
            assert row["Samples, of SAM's"] == f"{samples[i] / SAMPLES['SAM'][i]:.2f}"
            assert run.steps == (60, 18)[i]
            assert sum(run.second_passes) == (0 if row["Method"] == "SGD" else run.steps)
            assert row["Test accuracy, %"] == f"{run.accuracy:.2f}"
            assert 0 < run.accuracy <= 100
            difference = run.accuracy - group["SAM"][0].accuracy
            expected = "-" if row["Method"] == "SAM" else f"{difference:+.2f} ({int(difference > 0)} of 1)"
            assert row["minus SAM"] == expected
            percent = 100 * sum(group["SAM"][0].seconds) / sum(run.seconds)
            assert float(row["Speed, SAM%"]) == pytest.approx(percent, abs=0.51)
    assert "Seeds: 1. " in text


def test_results_say_with_what_they_were_made(demo):
    results = json.loads((demo[0] / "demo.json").read_text(encoding="utf-8"))
    configuration = results["configuration"]
    assert (configuration["seeds"], configuration["device"], configuration["threads"]) == (1, "cpu", 1)
    assert configuration["torch"] == torch.__version__
    jobs = [rows.job(method, data, EPOCHS, 0) for data in rows.DATA for method in SAMPLES]
    assert results["jobs"] == [job.as_dict() for job in jobs]


def test_picture_is_a_small_png(demo):
    content = (demo[0] / "demo.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert 1000 < width < 1500 and 600 < height < 1000
    assert len(content) < 200_000


def test_without_sam_and_with_one_epoch_there_is_nothing_to_compare(tmp_path):
    run_demo("--seeds", 2, "--epochs", 1, "--methods", "SGD", "vSAM-A", "SGD", "--output", tmp_path)
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "Seeds: 2 (mean ± standard deviation). " in text
    for table in read_tables(text):
        assert [row["Method"] for row in table] == ["SGD", "vSAM-A"]
        for row in table:
            assert [row[name] for name in report.HEADER[2:]] == ["-"] * 4
            assert " ± " in row["Test accuracy, %"]
    assert (tmp_path / "demo.png").exists()


def test_differences_are_paired_and_time_is_the_sum_of_median_epochs():
    disturbed = [[1.0, 2.0], [9.0, 2.5], [1.5, 9.0]]  # of three seeds
    runs = [Run("made", "SAM", seed, 90.0 + seed, 64, seconds=disturbed[seed]) for seed in range(3)]
    gains = (2.0, -1.0, 2.0)
    runs += [Run("made", "SGD", seed, 90.0 + seed + gains[seed], 32, seconds=[0.5, 1.5]) for seed in range(3)]
    ((sam, sgd),) = read_tables(report.text(runs))
    assert (sam["Test accuracy, %"], sam["Speed, SAM%"]) == ("91.00 ± 1.00", "100")
    assert sgd["minus SAM"] == "+1.00 ± 1.73 (2 of 3)"
    assert sgd["minus SAM+Random"] == "-"
    assert sgd["Samples, of SAM's"] == "0.50"
    assert sgd["Speed, SAM%"] == f"{100 * (1.5 + 2.5) / 2:.0f}"


def test_no_difference_has_no_minus():
    assert paired([0.3, -0.1, -0.2]) == "+0.00 ± 0.26 (1 of 3)"  # of which the sum is a little below 0


def test_followed_are_the_changed_labels_and_the_rare_classes():
    clean, _ = digits.load(digits.PLAIN, 0)
    wrong, _ = digits.load(WRONG.name, 0)
    marked = compare.marks(WRONG, 0)
    assert marked.sum() == 320
    assert torch.equal(marked, wrong.y != clean.y)
    rare, _ = digits.load(LONG_TAILED.name, 0)
    assert rare.y[compare.marks(LONG_TAILED, 0)].bincount(minlength=10).tolist() == [0] * 5 + [15, 9, 6, 4, 3]


def test_share_of_followed_samples_is_of_those_trained_on(threads):
    threads(1)
    run, epochs = train("AUSAM-probability", LONG_TAILED, 4)
    for _ in epochs:
        pass
    job = rows.job("AUSAM-probability", LONG_TAILED, 4, 0)
    training = Training(job, compare._problem(job, CPU), CPU)
    rare, expected = set(compare.marks(LONG_TAILED, 0).nonzero().flatten().tolist()), []
    followed = seen = 0
    for index in training.steps():
        if index is not None:
            followed, seen = followed + len(rare & set(index.tolist())), seen + len(index)
        else:
            expected.append(followed / seen)
            followed = seen = 0
    assert run.marked == pytest.approx(expected, abs=1e-4)
    assert expected[0] == 37 / 357 and len(set(expected)) == 4


def test_methods_that_take_turns_do_not_disturb_each_other(threads):
    """Nor do they by the data that they share."""
    threads(1)
    alone, epochs = train("AUSAM", WRONG, 2)
    for _ in epochs:
        pass
    shared = compare._problem(rows.job("AUSAM", WRONG, 2, 0), CPU)
    together, epochs = train("AUSAM", WRONG, 2, shared)
    _, others = train("AUSAM-probability+vSAM", WRONG, 2, shared)
    for _ in zip_longest(others, epochs):
        pass
    assert {**asdict(alone), "seconds": 0} == {**asdict(together), "seconds": 0}


@pytest.mark.parametrize("method", ["vSAM", "AUSAM-probability+vSAM"])
def test_vsam_takes_seventeen_second_passes_in_each_fifty_steps_of_its_own(method, threads):
    threads(1)
    run, epochs = train(method, LONG_TAILED, 53)
    for _ in epochs:
        pass
    assert run.second_passes[:3] == [6, 6, 6]  # SAM
    assert sum(run.second_passes[3:]) == 6 * 17  # six windows: a rate of 0.34 that does not move


def test_random_half_differs_from_ausam_only_in_its_choice():
    methods = {}
    for name in ("AUSAM", "SAM+Random"):
        job = rows.job(name, WRONG, 20, 0)
        methods[name] = Training(job, compare._problem(job, CPU), CPU).method
    random, ausam = methods["SAM+Random"].batches, methods["AUSAM"].batches
    assert (random.alpha, random.full_epochs) == (ausam.alpha, ausam.full_epochs) == (0.5, 1)
    assert (random.s_min, random.s_max) == (1.0, 1.0)
    assert (ausam.s_min, ausam.s_max, ausam.warmup_epochs) == (0.1, 1.0, 3)  # 15 % of the epochs


def test_committed_picture_is_small():
    assert (Path(command.__file__).parents[1] / "results/demo.png").stat().st_size < 200_000


def test_every_method_has_a_marker_of_its_own():
    styles = [figure.STYLES[method] for method in rows.METHODS]
    assert len({marker for _, marker in styles}) == len(styles)


def test_help_names_every_option_method_and_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # a name that is broken at its hyphen
    for option in ("--seeds", "--epochs", "--methods", "--device", "--threads", "--output"):
        assert option in text
    for method in rows.METHODS:
        assert method in text
    for default in (
        "(default: 5)",
        f"(default: {WRONG.epochs}, and {LONG_TAILED.epochs} with rare classes)",
        "(default: all)",
        "(default: cpu)",
        "(default: demo-results)",
    ):
        assert default in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "Adam"], "argument --methods: invalid choice: 'Adam'"),
        (["--seeds", "0"], "argument --seeds: expected a whole number above 0, got '0'"),
        (["--epochs", "-1"], "argument --epochs: expected a whole number above 0, got '-1'"),
        (["--epochs", "few"], "argument --epochs: expected a whole number above 0, got 'few'"),
        (["--device", "abacus"], "argument --device: cannot compute on 'abacus'"),
        (["--device", "meta"], "argument --device: cannot compute on 'meta'"),
        (["--output", __file__], "argument --output: cannot make the folder"),
    ],
)
def test_refuses_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_says_in_a_line_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "find_spec", lambda module: None if module == "sklearn" else object())
    with pytest.raises(SystemExit) as stopped:
        command.main(["--output", str(tmp_path / "results")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == 'the demo needs scikit-learn: pip install ".[demo]"\n'
    assert not (tmp_path / "results").exists()
