"""What a step costs for tables of a thousand to a hundred million samples: `make bench`.

Work and memory are the same for all. The time of a step grows when the table leaves the processor's caches,
as each of its 128 samples is then a read from memory.
"""

import multiprocessing
from itertools import count, cycle, islice
from pathlib import Path

import pytest
import torch

from ausam_ext import ADLP, AUSAMBatchSampler

K = 128
STEPS = (1 << 20) // K  # as many as are planned at once
SIZES = [10**e for e in range(3, 9)]


def visited(n):
    """Every page of the table in use."""
    adlp = ADLP(n)
    adlp.total.uniform_()
    adlp.count.fill_(1)
    return adlp


def plans(adlp):
    """Batches of epoch after epoch."""
    batches = AUSAMBatchSampler(adlp, K, full_epochs=0, warmup_epochs=0, drop_last=True)
    for epoch in count():
        batches.set_epoch(epoch)
        yield from batches


@pytest.mark.parametrize("n", SIZES)
def test_plan(benchmark, n):
    benchmark.group = f"plan of {STEPS} steps, {K} samples each, whole epochs"
    batches = plans(visited(n))
    benchmark.pedantic(lambda: sum(1 for _ in islice(batches, STEPS)), rounds=5, warmup_rounds=1)
    benchmark.extra_info["µs per step"] = round(benchmark.stats["median"] / STEPS * 1e6, 1)


@pytest.mark.parametrize("n", SIZES)
def test_update(benchmark, n):
    benchmark.group = f"update with {K // 2} samples of the table"
    adlp, loss, loss_perturbed = visited(n), torch.rand(K // 2), torch.rand(K // 2)
    indices = cycle(torch.randint(0, n, (1000, K // 2)).unbind())
    benchmark(lambda: adlp.update(next(indices), loss, loss_perturbed))


def _memory(which):
    """VmRSS or VmHWM, its peak, of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def _peak(n, sender):
    adlp = visited(n)
    for _ in islice(plans(ADLP(1000)), 100):  # loads what is loaded once
        adlp.update(torch.zeros(1, dtype=torch.int64), torch.zeros(1), torch.ones(1))
    before = _memory("VmRSS")
    for row in islice(plans(adlp), 2 * STEPS):
        adlp.update(torch.tensor(row), torch.zeros(K // 2), torch.ones(K // 2))
    adlp.load_state_dict(adlp.state_dict())
    sender.send(_memory("VmHWM") - before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("n", SIZES)
def test_memory_beside_the_table(benchmark, n):
    """Of a process of its own: peak after two blocks of the plan, less what it had with only the table."""
    benchmark.group = f"memory beside the table: {2 * STEPS} planned steps with their updates"
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)

    def process():
        p = context.Process(target=_peak, args=(n, sender))
        p.start()
        p.join()
        assert p.exitcode == 0

    benchmark.pedantic(process)
    megabytes = round(receiver.recv(), 1)
    benchmark.extra_info |= {"MB beside the table": megabytes, "MB of the table": n * 9 / 2**20}
    print(f"\n{n:>11,} samples: table {n * 9 / 2**20:.1f} MB, beside it {megabytes} MB")
    assert megabytes < 120
