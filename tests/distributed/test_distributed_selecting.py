"""ESAM and K-SAM in two processes."""

import pytest
from distributed import selecting as on_processes
from distributed.processes import assert_passed, checks, start


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return start(on_processes, 2, tmp_path_factory.mktemp("selecting"))


@pytest.mark.parametrize("name", checks(on_processes))
def test_two_processes(outcomes, name):
    assert_passed(outcomes, name)
