"""SAMOptimizer over a model in shards (fully_shard), in two processes."""

import pytest
from distributed import adapter
from distributed.processes import assert_passed, checks, start


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "outcomes"
    folder.mkdir()
    return start(adapter, 2, folder)


@pytest.mark.parametrize("name", checks(adapter))
def test_adapter(outcomes, name):
    assert_passed(outcomes, name)
