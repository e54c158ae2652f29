"""One of three processes fails: the others do not hang, and their weights come back."""

import pytest
from distributed import failures
from distributed.processes import assert_passed, checks, start


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return start(failures, 3, tmp_path_factory.mktemp("failures"))


@pytest.mark.parametrize("name", checks(failures))
def test_failure(outcomes, name):
    if name == "check_a_rank_is_killed_between_the_passes":
        assert name not in outcomes.pop(failures.FAILING)
    assert_passed(outcomes, name)
