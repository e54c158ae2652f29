"""FSDP2 (fully_shard) in two and in four processes."""

import pytest
from distributed import fsdp
from distributed.processes import SETTINGS, assert_passed, checks, start


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda s: f"{s[0]} on {s[1]}")
def outcomes(request, tmp_path_factory):
    world, device = request.param
    folder = tmp_path_factory.getbasetemp() / device / str(world)  # beside it: what two wrote and four read
    folder.mkdir(parents=True)
    return start(fsdp, world, folder, device=device)


@pytest.mark.parametrize("name", checks(fsdp))
def test_fsdp(outcomes, name):
    assert_passed(outcomes, name)
