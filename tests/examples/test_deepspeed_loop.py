"""The engine's loop against a plain one, in one process and in two."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from ausam_ext import SAM

# It compiles its optimizers with torch.compile, which imports torch's own TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")

EPOCHS, MICRO_BATCH, ACCUMULATION, CLIP = 1, 16, 3, 0.5


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """DeepSpeed keeps groups from the first on, so it is one for all tests."""
    store = tmp_path_factory.mktemp("gloo") / "store"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def by_hand(model, dataset, processes):
    """Each step on what all processes have in theirs."""
    optimizer, sam = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), SAM(model, rho=0.05)
    x, y = dataset.tensors
    shares = [
        torch.tensor(list(torch.utils.data.DistributedSampler(dataset, processes, rank)))
        for rank in range(processes)
    ]
    micro_batches = [share[: len(share) // MICRO_BATCH * MICRO_BATCH].split(MICRO_BATCH) for share in shares]

    def one_pass(parts):
        for i in parts:
            (F.cross_entropy(model(x[i]), y[i]) / len(parts)).backward()

    for step in range(len(micro_batches[0]) // ACCUMULATION):
        one = slice(step * ACCUMULATION, (step + 1) * ACCUMULATION)
        parts = [i for own in micro_batches for i in own[one]]
        one_pass(parts)
        with sam.perturbed():
            one_pass(parts)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()


def test_one_process(example, one_process):
    dataset, model = example.make_data(), example.make_model()
    expected = copy.deepcopy(model)
    example.train(model, dataset, EPOCHS, MICRO_BATCH, ACCUMULATION, CLIP)
    by_hand(expected, dataset, processes=1)
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=1e-5, atol=1e-6)


def test_two_processes(example, free_port, tmp_path):
    dataset, model = example.make_data(), example.make_model()
    torch.save(model.state_dict(), tmp_path / "start.pt")
    worker = Path(__file__).with_name("deepspeed_worker.py")
    run = [sys.executable, str(worker), str(tmp_path), str(Path(example.__file__).parent)]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    workers = [
        subprocess.Popen(run, env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [worker.wait(timeout=200) for worker in workers] == [0, 0]
    by_hand(model, dataset, processes=2)
    for rank in range(2):
        weights = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(weights, model.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_is_refused(example, one_process, stage):
    model = example.make_model()
    config = {
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = example.deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    with pytest.raises(TypeError, match="without ZeRO"):
        SAM(engine)
