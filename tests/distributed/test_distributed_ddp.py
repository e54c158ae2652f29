"""DistributedDataParallel in two and in four processes."""

import pytest
import torch
from distributed import ddp
from distributed.processes import assert_passed, checks, start

SETTINGS = [(2, "cpu"), (4, "cpu")] + [(n, "cuda") for n in (2, 4) if torch.cuda.device_count() >= n]


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda s: f"{s[0]} on {s[1]}")
def outcomes(request, tmp_path_factory):
    world, device = request.param
    return start(ddp, world, tmp_path_factory.mktemp("ddp"), device=device)


@pytest.mark.parametrize("name", checks(ddp))
def test_ddp(outcomes, name):
    assert_passed(outcomes, name)
