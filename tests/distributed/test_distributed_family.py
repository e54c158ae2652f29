"""The baselines in two processes: DistributedDataParallel and fully_shard."""

import pytest
from distributed import family
from distributed.processes import assert_passed, checks, start


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return start(family, 2, tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize("name", checks(family))
def test_in_two_processes(outcomes, name):
    assert_passed(outcomes, name)
