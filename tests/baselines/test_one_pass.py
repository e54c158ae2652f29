"""What SAF, MESA and Momentum-SAM hold alike: with other defaults of torch, and in several processes."""

import pytest
import torch
import torch.nn.functional as F
from distributed import one_pass
from distributed.processes import assert_passed, checks, start
from helpers import assert_unchanged
from torch import nn

from ausam_ext.baselines import MESA, SAF, MomentumSAM

N, CLASSES, BATCH, EPOCHS = 20, 3, 5, 4


def train(method):
    """Trains a network with running statistics; what all of them end with."""
    with torch.device("cpu"):
        torch.manual_seed(0)
        single = {"dtype": torch.float32}
        layers = [nn.Linear(6, 8, **single), nn.BatchNorm1d(8, **single), nn.Linear(8, CLASSES, **single)]
        net = nn.Sequential(*layers)
        x, y = torch.randn(N, 6, **single), torch.randint(0, CLASSES, (N,))
        order = [torch.randperm(N) for _ in range(EPOCHS)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    saf = SAF(N, CLASSES, delay=1, start_epoch=1, device="cpu")
    mesa = MESA(net, decay=0.5, start_epoch=1)
    msam = MomentumSAM(optimizer, 0.3)

    def passes(index):
        logits = net(x[index])
        loss = F.cross_entropy(logits, y[index])
        if method == "SAF":
            loss = loss + saf.penalty(index, logits)
        elif method == "MESA":
            loss = loss + mesa.penalty(logits, x[index])
        loss.backward()

    for epoch in range(EPOCHS):
        saf.set_epoch(epoch)
        mesa.set_epoch(epoch)
        for index in order[epoch].split(BATCH):
            optimizer.zero_grad()
            if method == "MomentumSAM":
                with msam.perturbed():
                    passes(index)
            else:
                passes(index)
            optimizer.step()
            mesa.update()
    return [net.state_dict(), optimizer.state_dict(), saf.state_dict(), mesa.state_dict(), msam.state_dict()]


@pytest.mark.parametrize("method", ["SAF", "MESA", "MomentumSAM"])
def test_defaults_of_torch(default, backend, method):
    assert_unchanged(lambda: train(method), default)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return start(one_pass, 2, tmp_path_factory.mktemp("one_pass"))


@pytest.mark.parametrize("name", checks(one_pass))
def test_processes(outcomes, name):
    assert_passed(outcomes, name)
