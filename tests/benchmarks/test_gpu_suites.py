"""What `make gpu` and `make gpu-accuracy` measure and train, tried without a GPU."""

import json
import time

import pytest
import torch

for module in ("matplotlib", "PIL", "tqdm"):
    pytest.importorskip(module)
from benchmarks import data, parts  # noqa: E402
from benchmarks.gpu import accuracy  # noqa: E402
from benchmarks.harness import row  # noqa: E402
from benchmarks.networks import mlp  # noqa: E402
from benchmarks.operators import __main__ as operators_main  # noqa: E402
from benchmarks.operators import bandwidth  # noqa: E402
from benchmarks.operators.cases import CASES  # noqa: E402
from benchmarks.papers.jobs import FASHION  # noqa: E402
from benchmarks.papers.jobs import jobs as jobs_of  # noqa: E402
from benchmarks.steps import __main__ as steps_main  # noqa: E402
from benchmarks.steps import precision  # noqa: E402


def test_what_matters_most_is_timed_first():
    """So that a time limit costs what matters least."""
    steps = list(steps_main.settings("cuda", brief=True))
    kinds = ("from memory", "from memory, graph", "PNG files")
    wanted = [f"{name}, {kind}" for kind in kinds for name in ("ResNet-18", "WideResNet-28-10")]
    assert [name for name in steps if name in wanted] == wanted
    assert all(name.startswith("PyramidNet") for name in steps[-len(kinds) :])
    assert not any(name.startswith("PyramidNet") for name in steps[: -len(kinds)])
    operators = list(operators_main.cases("cuda", brief=True))
    aimed = [bool(case.target or case.on_cuda) for case in CASES]
    first = operators[: sum(aimed)]
    assert set(first) == {str(case) for case, has in zip(CASES, aimed, strict=True) if has}
    assert len(operators) > len(CASES) and all(n.endswith(", compiled") for n in operators[len(CASES) :])


def test_what_does_not_fit_the_time_is_left_out_and_said(tmp_path, capsys):
    """Rows are saved as they come; a whole run replaces the suite's, part of one adds to them."""

    def part(seconds, *names):
        def measured():
            time.sleep(seconds)
            return [row("steps", name, "tiny", {"a": [1.0]}) for name in names]

        return measured

    def stored():
        suites = json.loads((tmp_path / "cpu.json").read_text())
        return [each["what"] for each in suites["steps"]["rows"]]

    chosen = {"old": part(0, "old")}
    assert parts.run(chosen, "cpu", folder=tmp_path) and stored() == ["old"]
    chosen = {"two": part(0, "a", "b"), "slow": part(30, "c"), "one": part(0, "d"), "last": part(30, "e")}
    assert not parts.run(chosen, "cpu", seconds=1.5, each=0.5, folder=tmp_path)
    assert stored() == ["old", "a", "b", "d"]
    said = capsys.readouterr().out
    assert "slow: not done after 0 s" in said and "last: not done after 0 s" in said
    assert not parts.run(chosen, "cpu", seconds=0, folder=tmp_path)
    assert "two: no time was left" in capsys.readouterr().out
    assert parts.run({"two": chosen["two"]}, "cpu", folder=tmp_path) and stored() == ["a", "b"]


def test_steps_in_bfloat16_have_paces_and_shares_of_sam(threads):
    threads(1)
    rows = precision.measure("MLP", mlp, 16, rounds=3, device="cpu")
    assert [row["what"] for row in rows] == ["SGD", "SAM", "AUSAM-0.5"]
    assert {row["size"] for row in rows} == {"MLP, 16 images, bfloat16"}
    for r in rows:
        pace = r["images_per_second"]["eager"]
        assert pace == pytest.approx(16 / r["columns"]["eager"]["median"], rel=0.01)
        share = 100 * pace / rows[1]["images_per_second"]["eager"]
        assert r["SAM_percent"]["eager"] == pytest.approx(share, rel=0.01)
        assert r["host_microseconds"]["eager"] > 0
    step = precision.Step("AUSAM-0.5", mlp, 16, torch.bfloat16, "cpu")
    before = [p.clone() for p in step.model.parameters()]
    step()
    assert step.adlp.count.tolist() == [1] * 8 + [0] * 8
    assert not any(map(torch.equal, step.model.parameters(), before))


@pytest.mark.parametrize(
    ("what", "times"), [("perturb_", 5), ("restore_", 2), ("psf_capture_", 3), ("psf_reuse_", 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bandwidth_counts_what_has_to_be_moved(what, times, dtype):
    (row,) = bandwidth.measure(what, "two", [(3, 5), (7,)], dtype, device="cpu")
    assert row["bytes"] == times * 22 * dtype.itemsize and row["against"] == "copy"
    assert row["size"] == f"two, {str(dtype).removeprefix('torch.')}"


@pytest.fixture
def jobs(tmp_path):
    """Some small ones, and the folder of their made images."""
    data.write("Fashion-MNIST", tmp_path / "data" / "Fashion-MNIST")
    found = jobs_of(FASHION, seeds=1, epochs=1, made=True, methods=["SGD", "SAM", "AUSAM-0.5"])
    return [job for _, of_row in found for job in of_row], tmp_path / "data"


def test_accuracy_is_a_line_for_each_run_and_a_run_that_fails_costs_itself(jobs, tmp_path, monkeypatch):
    (todo, folder), output, cpu = jobs, tmp_path / "output", torch.device("cpu")
    train = accuracy.runs.run

    def fails(some, *arguments, **options):
        if some == [todo[1]]:
            raise RuntimeError("planted")
        return train(some, *arguments, **options)

    monkeypatch.setattr(accuracy.runs, "run", fails)
    work = tmp_path / "work"
    assert accuracy.train(todo[:2], folder, output, cpu, 100, work)
    assert not accuracy.train(todo, folder, output, cpu, 0, work)  # no time for the last one
    assert accuracy.train(todo, folder, output, cpu, 100, work)
    lines = [json.loads(line) for line in (output / accuracy.LINES).read_text().splitlines()]
    assert [line["key"] for line in lines] == [job.key for job in todo]
    assert lines[1]["failed"] == "RuntimeError: planted" and lines[1]["job"]["method"] == todo[1].method
    assert all(len(line["accuracy"]) == 1 for line in (lines[0], lines[2]))
    assert [path.name for path in output.iterdir()] == [accuracy.LINES]
