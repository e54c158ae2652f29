"""What SAM and vSAM hold above SGD, by torch's allocator: at most one and two copies of the parameters."""

import pytest
import torch
from torch import nn

pytest.importorskip("PIL")

from benchmarks.steps import memory


def network():
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 14 * 14, 40)
    )


@pytest.fixture(scope="module")
def sgd():
    return memory.peak_of("SGD", network, 8)


def test_peak_counts_what_is_held_at_once():
    def run():
        a = torch.empty(1000)  # 4,000 bytes
        b = torch.empty(500, dtype=torch.float64)
        del a
        c = torch.empty(100)
        return b, c

    assert memory.peak(run) == 8000


@pytest.mark.parametrize("method", memory.COPIES)
def test_copies_above_sgd(method, sgd):
    extra = memory.peak_of(method, network, 8) - sgd
    assert extra <= memory.limit(method, network, 8)
    if "AUSAM" not in method:  # which needs fewer activations
        copies = memory.COPIES[method] * memory.bytes_of(network)[0]
        assert extra > 0.99 * copies  # else it is not the copies that is measured


def test_limits_are_one_and_two_copies():
    parameters = sum(p.nbytes for p in network().parameters())
    for method, copies in (("SAM", 1), ("vSAM-0.3", 2)):
        assert copies * parameters < memory.limit(method, network, 8) < copies * parameters + 2000
