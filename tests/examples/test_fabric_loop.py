"""Fabric: the weights of a loop by hand on one process, one result on two."""

import os
import subprocess
import sys

import torch
from torch import nn

from ausam_ext import ADLP, SAM, AUSAMBatchSampler


def test_weights_are_those_of_a_loop_by_hand(example, by_hand, chosen):
    from lightning.fabric import Fabric

    torch.manual_seed(0)
    theirs, table = example.train(Fabric(accelerator="cpu", devices=1), epochs=3)
    torch.manual_seed(0)
    model = example.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = example.make_data().tensors
    adlp = ADLP(len(x))
    batches = AUSAMBatchSampler(adlp, 64, epochs=3, warmup_epochs=0.3)

    def clip(step):
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    by_hand(model, optimizer, SAM(model, rho=0.05), chosen(batches, 3, x, y), adlp, before_step=clip)
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), model.parameters(), strict=True))
    assert torch.equal(table.total, adlp.total)


WORKER = """
import sys, torch, fabric_loop
from lightning.fabric import Fabric
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
fabric.seed_everything(0, verbose=False)
model, adlp = fabric_loop.train(fabric, epochs=2)
torch.save([*model.state_dict().values(), adlp.count, adlp.total], f"{fabric.global_rank}.pt")
"""


def test_two_processes_agree(example, tmp_path):
    folder = os.path.dirname(example.__file__)
    (tmp_path / "worker.py").write_text(WORKER)
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "worker.py"], check=True, timeout=240, cwd=tmp_path, env=environment)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    # 899 samples in each process: all in the first epoch, then half of 14 batches of 64 and 2 of 3.
    assert first[-2].sum() == 2 * (899 + 14 * 32 + 2)
