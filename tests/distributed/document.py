"""Runs the code of docs/distributed.md: each of its blocks, one after the other, in every process."""

import re

import torch
import torch.distributed as dist
from distributed.processes import assert_same_everywhere
from helpers import ROOT

from ausam_ext import SAM

DOCUMENT = ROOT / "docs/distributed.md"


def check_code(folder):
    script, *rest = re.findall(r"```py\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(rest) == 3
    names = {"path": str(folder / "checkpoint")}
    # A group is there already, and is needed once more.
    lines = [
        line for line in script.splitlines() if not re.match(r"dist\.(init|destroy)_process_group", line)
    ]
    assert len(script.splitlines()) - len(lines) == 2

    def run(block):
        exec(compile(block, DOCUMENT.name, "exec"), names)

    run("\n".join(lines))
    adlp, model, batches = names["adlp"], names["model"], names["batches"]
    assert_same_everywhere([*model.parameters(), adlp.total, adlp.count])
    assert adlp.count.min() >= 1 and adlp.count.max() > 1
    assert batches.num_replicas == dist.get_world_size() and batches.epoch == 5

    names["sam"] = SAM(model)
    grads = []
    for block in rest[:2]:
        names["optimizer"].zero_grad()
        run(block)
        grads.append([p.grad.clone() for p in model.parameters()])
        assert_same_everywhere(grads[-1])
    torch.testing.assert_close(*grads)

    run(rest[2])
    assert (folder / "checkpoint" / ".metadata").exists() and names["vsam"].sampled
