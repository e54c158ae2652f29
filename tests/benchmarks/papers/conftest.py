"""`benchmarks` is no installed package: its folder comes last, so that the rest is what is installed."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def _seeded_on_one_thread():
    """Networks begin with the same weights whatever was tested before, and small ones run on one thread."""
    before = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
