"""Every example runs unchanged, and is described in examples/README.md."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROJECT = EXAMPLES.parent / "pyproject.toml"
FILES = sorted(EXAMPLES.glob("*.py"))
ROWS = [row.split("|") for row in re.findall(r"^\| \[`.*", (EXAMPLES / "README.md").read_text("utf-8"), re.M)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_runs_as_a_program(path, importable, tmp_path):
    importable(path)
    run = subprocess.run(
        [sys.executable, str(path)],
        check=True,
        timeout=240,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert re.search(r"(accuracy|loss)\D*\d", run.stdout), run.stdout


def test_each_example_has_a_row():
    assert [re.search(r"\((.*?)\)", row[1])[1] for row in ROWS] == [path.name for path in FILES]


def test_the_versions_that_are_named_are_those_that_are_tested():
    named = dict(re.findall(r"([\w-]+) (\d[\w.]*)", " ".join(row[2] for row in ROWS)))
    pinned = dict(re.findall(r"([\w-]+)==(\d[\w.]*)", PROJECT.read_text("utf-8")))
    assert {name: pinned[name] for name in named.keys() & pinned.keys()} == {
        name: version for name, version in named.items() if name in pinned
    }
