"""The demo: what it counts, what it writes, and what it refuses."""

import contextlib
import io
import json
import struct
from itertools import zip_longest

import pytest
import torch

from ausam_ext.demo import __main__ as command
from ausam_ext.demo.methods import METHODS

EPOCHS = 3
CPU = torch.device("cpu")
# 1,280 images in 20 batches of 64. AUSAM's first epoch is whole; the first three of vSAM are SAM.
SAMPLES = {
    "SGD": 3 * 1280,
    "SAM": 2 * 3 * 1280,
    "SAM+Random": 2 * 3 * 640,
    "AUSAM": 2 * (1280 + 640 + 640),
    "vSAM": 2 * 3 * 1280,
    "AUSAM+vSAM": 2 * (1280 + 640 + 640),
}


def needs_extras():
    for module in command.EXTRA:
        pytest.importorskip(module)


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
    needs_extras()
    output = tmp_path_factory.mktemp("demo") / "new" / "folder"
    printed = run_demo("--seeds", 1, "--epochs", EPOCHS, "--methods", *SAMPLES, "--output", output)
    return output, printed


def read_table(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(set(cell) <= set("-:") for cell in lines[1])
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_table_has_a_row_for_each_method_with_the_passes_counted_by_hand(demo):
    output, printed = demo
    text = (output / "table.md").read_text(encoding="utf-8")
    assert text in printed
    rows = read_table(text)
    assert [row["Method"] for row in rows] == list(SAMPLES)
    for row in rows:
        samples = SAMPLES[row["Method"]]
        assert row["Samples forward-backward"] == f"{samples:,}"
        assert row["of SAM's"] == f"{samples / 7680:.2f}"
        assert row["Full-batch passes"] == f"{samples / 64:.1f}"
        assert 0 < float(row["Test accuracy, %"]) <= 100
    assert rows[1]["Speed, SAM%"] == "100"
    assert "Seeds: 1. Epochs: 3. Full batch: 64 samples." in text


def test_results_hold_the_numbers_of_the_table(demo):
    output, _ = demo
    results = json.loads((output / "results.json").read_text())
    configuration = results["configuration"]
    assert (configuration["seeds"], configuration["epochs"], configuration["device"]) == (1, EPOCHS, "cpu")
    assert configuration["torch"] == torch.__version__
    assert configuration["methods"]["AUSAM"]["sampler"] == {"alpha": 0.5}
    rows = read_table((output / "table.md").read_text(encoding="utf-8"))
    sam = results["methods"][1]["seeds"][0]["seconds"]
    for row, method in zip(rows, results["methods"], strict=True):
        (seed,) = method["seeds"]
        assert row["Method"] == method["method"]
        assert row["Test accuracy, %"] == f"{method['accuracy']:.2f}"
        assert row["Time, s"] == f"{method['seconds']:.2f}"
        assert row["Speed, SAM%"] == f"{method['sam_percent']:.0f}"
        assert (seed["accuracy"], seed["samples"]) == (method["accuracy"], method["samples"])
        assert seed["seconds"] == pytest.approx(method["seconds"])
        assert method["sam_percent"] == pytest.approx(100 * sam / seed["seconds"])
        assert seed["steps"] == 20 * EPOCHS
        assert seed["two_pass_steps"] == (0 if row["Method"] == "SGD" else 20 * EPOCHS)


def test_picture_is_a_small_png(demo):
    content = (demo[0] / "demo.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (1200, 850)
    assert len(content) < 200_000


def test_without_sam_and_with_one_epoch_there_is_nothing_to_compare(tmp_path):
    needs_extras()
    run_demo("--seeds", 2, "--epochs", 1, "--methods", "SGD", "vSAM-A", "SGD", "--output", tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "Seeds: 2 (mean ± standard deviation). Epochs: 1." in text
    rows = read_table(text)
    assert [row["Method"] for row in rows] == ["SGD", "vSAM-A"]
    for row in rows:
        assert (row["Speed, SAM%"], row["of SAM's"]) == ("-", "-")
        assert " ± " in row["Test accuracy, %"]
    assert (tmp_path / "demo.png").exists()


def test_time_is_the_sum_of_median_epochs():
    needs_extras()
    from ausam_ext.demo.report import summarize
    from ausam_ext.demo.training import Run

    disturbed = [[1.0, 2.0], [9.0, 2.5], [1.5, 9.0]]  # of three seeds
    runs = [Run("SAM", seed, seconds=seconds, samples=64) for seed, seconds in enumerate(disturbed)]
    runs += [Run("SGD", seed, seconds=[0.5, 1.5], samples=32, accuracy=90.0 + seed) for seed in range(3)]
    sam, sgd = summarize(runs)
    assert sam.seconds == 1.5 + 2.5
    assert (sgd.sam_percent, sgd.samples_of_sam, sgd.passes) == (200, 0.5, 0.5)
    assert (sgd.accuracy, sgd.accuracy_std) == (91, 1)


def test_a_quarter_of_the_training_labels_is_wrong_and_marked(monkeypatch):
    needs_extras()
    from ausam_ext.demo import data

    noisy = data.load(0)
    monkeypatch.setattr(data, "LABEL_NOISE", 0.0)
    clean, other = data.load(0), data.load(1)
    assert noisy.wrong.sum() == 320
    assert torch.equal(noisy.train.y != clean.train.y, noisy.wrong)
    assert not clean.wrong.any()
    assert torch.equal(noisy.test.y, clean.test.y)
    assert torch.equal(noisy.train.x, clean.train.x)
    assert not torch.equal(other.train.x, clean.train.x)
    shares = [digits.y.bincount(minlength=10) / len(digits.y) for digits in (clean.train, clean.test)]
    torch.testing.assert_close(*shares, atol=0.002, rtol=0)  # stratified: one image in 517


def test_methods_that_take_turns_do_not_disturb_each_other(threads):
    needs_extras()
    threads(1)
    from ausam_ext.demo import data
    from ausam_ext.demo.training import Run, train

    digits = data.load(0)
    alone, together, other = Run("AUSAM", 0), Run("AUSAM", 0), Run("AUSAM+vSAM", 0)
    for _ in train(alone, digits, 2, CPU):
        pass
    for _ in zip_longest(train(other, digits, 2, CPU), train(together, digits, 2, CPU)):
        pass
    assert alone.accuracy == together.accuracy
    assert torch.equal(alone.adlp, together.adlp)  # and every sample was visited: no NaN
    assert all(map(torch.equal, alone.chosen, together.chosen))


def test_vsam_takes_ten_second_passes_in_the_first_fifty_steps_of_its_own(threads):
    needs_extras()
    threads(1)
    from ausam_ext.demo import data
    from ausam_ext.demo.training import Run, train

    run = Run("vSAM", 0)
    for _ in train(run, data.load(0), 6, CPU):
        pass
    assert all(run.sampled[:60])
    assert sum(run.sampled[60:110]) == 10
    assert run.rate[:60] == [1.0] * 60
    assert run.rate[60:110] == [10 / 50] * 50
    assert run.samples == 64 * (len(run.sampled) + sum(run.sampled))
    assert len(run.psf_norm) == sum(run.sampled)
    assert min(run.psf_norm) > 0


def test_help_names_every_option_method_and_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--seeds", "--epochs", "--methods", "--device", "--threads", "--output"):
        assert option in text
    for method in METHODS:
        assert method in text
    for default in (
        "(default: 5)",
        "(default: 40)",
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
    assert capsys.readouterr().err == 'the demo needs scikit-learn: pip install "ausam_ext[demo]"\n'
    assert not (tmp_path / "results").exists()
