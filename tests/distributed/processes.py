"""Runs the checks of a module, `check_*(folder)`, in several processes that form a group.

The test side calls :func:`start`; every process runs this file: `python -m distributed.processes ...`. Each
check gets a process group of its own, so that one that fails does not take the others with it.
"""

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

TESTS = Path(__file__).parents[1]
SETTINGS = [(2, "cpu"), (4, "cpu")] + [(n, "cuda") for n in (2, 4) if torch.cuda.device_count() >= n]
TIMEOUT = timedelta(seconds=30)  # of a group's operations; a check may make a group with a shorter one


def checks(module):
    return [name for name, f in vars(module).items() if name.startswith("check_")]


def start(module, world, folder, *, device="cpu", deadline=240):
    """Runs all checks; returns for each rank what became of each: None, or the traceback."""
    command = [sys.executable, "-W", "error", "-m", "distributed.processes", module.__name__, str(world)]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder), device], cwd=TESTS) for rank in range(world)
    ]
    end = time.monotonic() + deadline
    try:
        for process in processes:
            process.wait(max(0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]


def torchrun(script, folder, processes=2):
    """Runs a script under torchrun, as a file of ``folder``.

    A process that ends right after its last reduction can abort: gloo's threads then still hold its tensors
    (PyTorch pull request 179291, shown by plain DDP too). A second is enough for them to let go.
    """
    (folder / "train.py").write_text(f"{script}\nimport time\ntime.sleep(1)\n", encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    subprocess.run(
        [*command, "--nproc-per-node", str(processes), "train.py"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=240,
    )


def assert_passed(outcomes, name):
    failed = {rank: outcome.get(name, "never ended") for rank, outcome in enumerate(outcomes)}
    failed = {rank: why for rank, why in failed.items() if why is not None}
    assert not failed, "\n".join(f"rank {rank}: {why}" for rank, why in failed.items())


def here():
    """The device of this process."""
    return torch.device("cuda", dist.get_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")


def group(folder, name, rank, world, device="cpu", timeout=TIMEOUT):
    """Makes the default process group, of the processes that meet at a file."""
    store = dist.FileStore(str(Path(folder) / f"{name}.store"), world)
    store.set_timeout(timedelta(seconds=120))
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def gathered(mine):
    """What every process has, by rank."""
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    return everyones


def assert_same_everywhere(tensors):
    """The same bits in every process."""
    mine = [t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors]
    everyones = gathered(mine)
    assert all(other == mine for other in everyones), [
        [a == b for a, b in zip(other, mine, strict=True)] for other in everyones
    ]


def main(module, world, rank, folder, device):
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    outcomes = {}
    module = importlib.import_module(module)
    for name in checks(module):
        torch.manual_seed(0)
        try:
            group(folder, name, rank, world, device)
            getattr(module, name)(Path(folder))
            outcomes[name] = None
        except Exception:
            outcomes[name] = traceback.format_exc()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        (Path(folder) / f"{rank}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
