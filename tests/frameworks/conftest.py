"""Needs the packages of `ausam_ext[frameworks]`: run by `make test-frameworks`, left out of `make test`."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before it is imported: what the tests need they make

if not all(map(find_spec, ("lightning", "accelerate", "transformers", "datasets"))):
    collect_ignore_glob = ["test_*.py"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "frameworks.md"


@pytest.fixture(autouse=True)
def _one_thread(threads):
    """The networks are too small for more."""
    threads(1)


@pytest.fixture
def code():
    """An example of the document, by its name, after its data."""
    blocks = dict(re.findall(r"```python (\w+)\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL))
    return lambda name: blocks["data"] + blocks[name]


@pytest.fixture
def example(monkeypatch, tmp_path, code):
    """Runs an example and returns its variables."""
    monkeypatch.chdir(tmp_path)

    def run(name):
        namespace = {"__name__": "frameworks"}
        exec(compile(code(name), f"{DOCUMENT.name}: {name}", "exec"), namespace)
        return namespace

    return run


@pytest.fixture
def accuracy(example):
    def measure(net, data):
        x, y = data.tensors
        with torch.no_grad():
            return (net(x).argmax(1) == y).double().mean().item()

    return measure
