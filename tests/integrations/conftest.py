"""Fixtures of the tests of SAMOptimizer."""

import pytest
from integrations.loops import METHODS


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]
