"""What the README says is true: its code runs, its table is the committed run's, its commands exist."""

import json
import re
from pathlib import Path

import pytest
import torch

from ausam_ext.demo import report

ROOT = Path(__file__).parents[1]
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


def test_the_demo_table_is_that_of_the_committed_run():
    rows = json.loads((ROOT / "benchmarks/results/demo.json").read_text(encoding="utf-8"))["methods"]
    shown = README.split("<!-- demo table -->\n")[1].split("<!-- end of demo table -->")[0]
    assert shown.startswith(
        report.table([report.Row(**{k: v for k, v in row.items() if k != "seeds"}) for row in rows])
    )
