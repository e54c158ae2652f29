"""What the README says is true: its code runs, its table is the committed run's, its commands exist."""

import re
from itertools import pairwise
from statistics import mean, stdev

import pytest
import torch
from helpers import ROOT

for module in ("PIL", "tqdm"):
    pytest.importorskip(module)

from benchmarks.demo import page, report  # noqa: E402
from benchmarks.demo.rows import DATA, METHODS  # noqa: E402
from benchmarks.markdown import filled  # noqa: E402

README, DEMO = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/demo.md"))


def test_is_short():
    assert len(README.splitlines()) <= 120


def test_the_training_loops_run_as_they_stand():
    namespace: dict = {"__name__": "readme"}
    sam, vsam, ausam = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

    def weights_after(block):
        exec(compile(block, "README.md", "exec"), namespace)
        return [p.detach().clone() for p in namespace["model"].parameters()]

    seen = [weights_after(block) for block in (sam, vsam, ausam)]
    assert namespace["vsam"].sampled and namespace["loss_perturbed"] is not None
    assert namespace["sam"].grad_norm > 0
    adlp, batches = namespace["adlp"], namespace["batches"]
    assert adlp.count.min() >= 1 and adlp.count.max() > 1  # a full first epoch, then a choice
    assert batches.epoch == namespace["epochs"]
    assert adlp.count.sum() == 2000 + 2 * (15 * 64 + 40)
    for before, after in pairwise(seen):
        assert not any(torch.equal(p, b) for p, b in zip(after, before, strict=True))


def test_every_operator_is_in_the_table():
    table = (ROOT / "docs/api/ops.md").read_text(encoding="utf-8")
    defined = {n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("ausam_ext::")}
    assert set(re.findall(r"`(\w+)`", table)) >= defined


@pytest.mark.parametrize("command", re.findall(r"make ([\w-]+)", README))
def test_commands_exist(command):
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_links_to_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target.partition("#")[0]).is_file(), target


@pytest.fixture
def demo():
    """The runs of the committed demo: a data set's by method."""
    return report.grouped(report.read(ROOT / "benchmarks/results/demo.json"))


def test_the_demo_tables_are_those_of_the_committed_run(demo):
    runs = [run for group in demo.values() for same in group.values() for run in same]
    for path in page.PAGES:
        assert path.read_text(encoding="utf-8") == filled(path.read_text(encoding="utf-8"), page.blocks())
    assert report.text(runs) in DEMO
    assert list(demo) == [data.name for data in DATA]
    assert all(list(group) == list(METHODS) for group in demo.values())
    assert {len(same) for group in demo.values() for same in group.values()} == {5}  # "five seeds"


def test_what_the_page_says_of_the_demo_is_what_the_committed_run_shows(demo):
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
    assert level("SAM", "SGD")
    every = mean(run.marked[0] for run in group["AUSAM"])
    assert follows("AUSAM") > every
    assert above("AUSAM", "SAM") and above("SAM+Random", "SAM")
    assert level("AUSAM", "SAM+Random") and mean(difference("AUSAM", "SAM+Random")) > 0
