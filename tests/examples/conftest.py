"""Needs the packages of `ausam_ext[frameworks]`: run by `make test-frameworks`, left out of `make test`.

`test_NAME.py` tests `examples/NAME.py`, which it gets as the fixture `example`. Its tests are skipped, and
say why, if a package that the example imports is not installed or does not fit to this torch. The packages
that pyproject.toml pins have to be imported if they are installed.
"""

import ast
import os
import re
import sys
import warnings
from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ausam_ext import VSAM

os.environ["HF_HUB_OFFLINE"] = "1"  # before it is imported: what the examples need they make
os.environ["KERAS_BACKEND"] = "torch"

if not all(map(find_spec, ("lightning", "accelerate", "transformers", "datasets"))):
    collect_ignore_glob = ["test_*.py"]

EXAMPLES = Path(__file__).parents[2] / "examples"
PINNED = set(re.findall(r'"([\w-]+)==', (EXAMPLES.parent / "pyproject.toml").read_text("utf-8")))


def packages(path):
    """The modules that an example imports from other packages than this one."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        yield from (
            name for name in names if name.split(".")[0] not in (*sys.stdlib_module_names, "ausam_ext")
        )


@pytest.fixture
def importable():
    """Skips the test if a package that the example ``path`` imports cannot be imported."""

    def check(path):
        for name in packages(path):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what others do at import is not tested here
                    import_module(name)
            except Exception as e:  # a binary for another torch may raise anything, RuntimeError for one
                package = name.split(".")[0]
                if PINNED.intersection(packages_distributions().get(package, ())):
                    raise
                pytest.skip(f"examples/{path.name}: {package} cannot be imported: {type(e).__name__}: {e}")

    return check


@pytest.fixture
def example(request, importable, monkeypatch, tmp_path):
    """The module ``examples/NAME.py``, for the tests in ``test_NAME.py``."""
    monkeypatch.chdir(tmp_path)
    name = request.path.stem.removeprefix("test_")
    path = EXAMPLES / f"{name}.py"
    importable(path)
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # where pickle looks for its classes
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread(threads):
    """The networks are too small for more."""
    threads(1)


@pytest.fixture
def by_hand():
    """Both passes and the step, written out, for a model that takes ``x`` and a classification."""

    def train(model, optimizer, sam, steps, adlp=None, before_step=lambda step: None):
        for number, (index, x, y) in enumerate(steps):
            loss = F.cross_entropy(model(x), y, reduction="none")
            loss.mean().backward()
            loss_perturbed = None
            if not isinstance(sam, VSAM) or sam.decide():
                with sam.perturbed():
                    loss_perturbed = F.cross_entropy(model(x), y, reduction="none")
                    loss_perturbed.mean().backward()
            else:
                sam.reuse_()
            if adlp is not None:
                adlp.update(index, loss, loss_perturbed)
            before_step(number)
            optimizer.step()
            optimizer.zero_grad()

    return train


@pytest.fixture
def chosen():
    """What a sampler hands out in so many epochs, looked up without a loader: ``(index, x, y)``."""

    def steps(batches, epochs, x, y):
        for epoch in range(epochs):
            batches.set_epoch(epoch)
            for rows in batches:
                yield torch.tensor(rows), x[rows], y[rows]

    return steps
