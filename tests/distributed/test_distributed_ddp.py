"""DistributedDataParallel in two and in four processes."""

import pytest
from distributed import ddp
from distributed.processes import SETTINGS, assert_passed, checks, start


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda s: f"{s[0]} on {s[1]}")
def outcomes(request, tmp_path_factory):
    world, device = request.param
    return start(ddp, world, tmp_path_factory.mktemp("ddp"), device=device)


@pytest.mark.parametrize("name", checks(ddp))
def test_ddp(outcomes, name):
    assert_passed(outcomes, name)
