"""Runs a function in several processes that form a group."""

import datetime
import multiprocessing
import os

import torch
import torch.distributed as dist


def _start(rank, processes, port, work, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", rank=rank, world_size=processes, timeout=timeout)
    work(rank, folder)
    dist.destroy_process_group()


def run(work, processes, port, folder):
    """Runs ``work(rank, folder)`` in so many processes; gives their exit codes."""
    context = multiprocessing.get_context("spawn")
    started = [
        context.Process(target=_start, args=(r, processes, port, work, folder)) for r in range(processes)
    ]
    for p in started:
        p.start()
    for p in started:
        p.join(120)
        p.kill()  # does nothing where it ended
    return [p.exitcode for p in started]
