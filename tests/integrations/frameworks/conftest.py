"""Needs the packages of `ausam_ext[frameworks]`: run by `make test-frameworks`, left out of `make test`."""

import os
import re
from importlib.util import find_spec

import pytest
import torch
from helpers import ROOT

os.environ["HF_HUB_OFFLINE"] = "1"  # before it is imported: what the tests need they make

if not all(map(find_spec, ("lightning", "accelerate", "transformers", "datasets"))):
    collect_ignore_glob = ["test_*.py"]

DOCUMENT = ROOT / "docs" / "frameworks.md"


@pytest.fixture(autouse=True)
def _one_thread(threads):
    """The networks are too small for more."""
    threads(1)


@pytest.fixture
def code():
    """Examples of the document, by their names, after its data."""
    blocks = dict(re.findall(r"```python (\w+)\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL))
    return lambda *names: "".join(blocks[name] for name in ("data", *names))


@pytest.fixture
def example(monkeypatch, tmp_path, code):
    """Runs examples and returns their variables."""
    monkeypatch.chdir(tmp_path)

    def run(*names):
        namespace = {"__name__": "frameworks"}
        exec(compile(code(*names), f"{DOCUMENT.name}: {names[-1]}", "exec"), namespace)
        return namespace

    return run


@pytest.fixture
def accuracy(example):
    def measure(net, data):
        x, y = data.tensors
        with torch.no_grad():
            return (net(x).argmax(1) == y).double().mean().item()

    return measure
