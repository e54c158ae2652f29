"""What the README says is true: its code runs, its table is the committed run's, its commands exist."""

import re
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # last: the package is the installed one

for module in ("PIL", "tqdm"):
    pytest.importorskip(module)

from benchmarks.demo import report  # noqa: E402
from benchmarks.demo.rows import DATA, METHODS  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_training_loops_run_as_they_stand():
    namespace: dict = {"__name__": "readme"}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    exec(compile(blocks[0], "README.md", "exec"), namespace)
    adlp, batches = namespace["adlp"], namespace["batches"]
    assert adlp.count.min() >= 1 and adlp.count.max() > 1  # a full first epoch, then a choice
    assert batches.epoch == namespace["epochs"]
    assert adlp.count.sum() == 2000 + 2 * (15 * 64 + 40)
    before = [p.detach().clone() for p in namespace["model"].parameters()]
    exec(compile(blocks[1], "README.md", "exec"), namespace)
    assert namespace["vsam"].sampled and namespace["loss_perturbed"] is not None
    assert not any(torch.equal(p, b) for p, b in zip(namespace["model"].parameters(), before, strict=True))


def test_every_operator_is_in_the_table():
    table = (ROOT / "docs/api/ops.md").read_text(encoding="utf-8")
    defined = {n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("ausam_ext::")}
    assert set(re.findall(r"`(\w+)`", table)) >= defined


@pytest.mark.parametrize("command", re.findall(r"make ([\w-]+)", README))
def test_commands_exist(command):
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_links_to_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).is_file(), target


@pytest.fixture
def demo():
    """The runs of the committed demo: a data set's by method."""
    return report.grouped(report.read(ROOT / "benchmarks/results/demo.json"))


def test_the_demo_tables_are_those_of_the_committed_run(demo):
    runs = [run for group in demo.values() for same in group.values() for run in same]
    shown = README.split("<!-- demo table -->\n")[1].split("<!-- end of demo table -->")[0]
    assert shown == report.text(runs)
    assert list(demo) == [data.name for data in DATA]
    assert all(list(group) == list(METHODS) for group in demo.values())
    assert {len(same) for group in demo.values() for same in group.values()} == {5}  # "five seeds"


def test_what_the_readme_says_of_the_demo_is_what_the_committed_run_shows(demo):
    """Level: the means differ by less than a standard deviation of the paired differences."""

    def difference(method, other):
        return report.differences(group[method], group[other])

    def level(method, other):
        return abs(mean(difference(method, other))) < stdev(difference(method, other))

    def above(method, other):
        return mean(difference(method, other)) > stdev(difference(method, other))

    def accuracy(method):
        return mean(run.accuracy for run in group[method])

    def follows(method):
        """The mean share of followed samples among those that it chose: after its whole first epoch."""
        return mean(share for run in group[method] for share in run.marked[1:])

    group = demo["digits, a quarter wrong"]
    assert min(difference("SAM", "SGD")) > 0
    gains = {method: accuracy(method) - accuracy("SGD") for method in METHODS}
    assert all(gain > 0.75 * gains["SAM"] for method, gain in gains.items() if method != "SGD")
    assert level("vSAM", "SAM") and above("SAM", "vSAM-A")
    assert level("AUSAM", "SAM+Random")
    assert follows("AUSAM") > 0.25 > follows("AUSAM-probability")
    for method in ("AUSAM-weighted", "AUSAM-probability"):
        assert 0 < mean(difference(method, "SAM+Random")) < 1
    assert level("AUSAM-probability+vSAM", "SAM")
    assert report.samples_of_sam(group["AUSAM-probability+vSAM"], group) < 0.5

    group = demo["digits, long-tailed"]
    assert level("SAM", "SGD") and mean(difference("SAM", "SGD")) > 0
    every = mean(run.marked[0] for run in group["AUSAM"])
    assert follows("AUSAM") > every
    assert max(METHODS, key=accuracy) == "AUSAM"
    assert level("AUSAM", "SAM") and level("AUSAM", "SAM+Random")
    assert sorted(METHODS, key=accuracy)[:2] == ["AUSAM-probability+vSAM", "vSAM-A"]
