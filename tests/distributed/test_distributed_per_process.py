"""Per-process perturbation (m-sharpness) in two and in four processes."""

import pytest
from distributed import per_process
from distributed.processes import SETTINGS, assert_passed, checks, start


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda s: f"{s[0]} on {s[1]}")
def outcomes(request, tmp_path_factory):
    world, device = request.param
    return start(per_process, world, tmp_path_factory.mktemp("per_process"), device=device)


@pytest.mark.parametrize("name", checks(per_process))
def test_per_process(outcomes, name):
    assert_passed(outcomes, name)
