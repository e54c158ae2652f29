"""Fixtures of the tests of ESAM and of K-SAM."""

import pytest
from baselines.selecting import METHODS


@pytest.fixture(params=METHODS)
def make(request):
    return METHODS[request.param]
