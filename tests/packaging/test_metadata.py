"""The package says the same of itself everywhere, and the installed package is the one that is tested."""

import json
import re
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from environments import ROOT, run

import ausam_ext


def test_the_installed_package_is_tested():
    installed = distribution("ausam_ext")
    if json.loads(installed.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
        pytest.skip("an editable installation is the source tree on purpose")
    assert Path(ausam_ext.__file__).resolve() in {f.locate().resolve() for f in installed.files}
    assert Path(ausam_ext.__file__).resolve() != (ROOT / "ausam_ext" / "__init__.py").resolve()


def test_a_clone_finds_the_kernels_that_were_installed():
    """`pip install .`, then `python -m ausam_ext` without leaving the folder."""
    assert f"cpu: {ausam_ext.backends()['cpu'].kernels} kernels" in run(
        sys.executable, "-m", "ausam_ext", cwd=ROOT
    )


def test_one_version():
    """Of which setuptools reads the package's."""
    assert distribution("ausam_ext").version == ausam_ext.__version__
    for file in ("pyproject.toml", "setup.py", "CITATION.cff"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not re.search(r"^\s*version\s*[:=]\s*['\"\d]", text, re.MULTILINE), file


def test_one_list_of_pythons():
    """The classifiers', as in the README, the wheels and the workflow."""
    named = distribution("ausam_ext").metadata.get_all("Classifier")
    pythons = [c.rpartition(" ")[2] for c in named if c.startswith("Programming Language :: Python :: 3.")]
    oldest, newest = pythons[0], pythons[-1]
    minors = range(int(oldest[2:]), int(newest[2:]) + 1)
    assert pythons == [f"3.{minor}" for minor in minors]
    assert distribution("ausam_ext").metadata["Requires-Python"] == f">={oldest}"
    for page in ("README.md", "docs/installing.md"):
        assert f"Python {oldest} to {newest}" in (ROOT / page).read_text(encoding="utf-8"), page
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r"\bcp3(\d+)-", project) == [str(minor) for minor in minors]
    workflow = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    assert {oldest, newest} <= set(re.findall(r'python: "([\d.]+)"', workflow)) <= set(pythons)
    assert f"Py_LIMITED_API 0x03{minors[0]:02X}0000" in (ROOT / "csrc/module.cpp").read_text()


@pytest.mark.parametrize("workflow", ["docs", "test", "wheels"])
def test_workflows_run_commands_of_the_makefile(workflow):
    """So that each step can be run by hand."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = (ROOT / f".github/workflows/{workflow}.yml").read_text(encoding="utf-8")
    commands = re.findall(r"run: *(.*)", text)
    assert commands
    for command in commands:
        target = re.match(r"make ([\w-]+)", command)
        assert target and re.search(rf"^{target[1]}:", makefile, re.MULTILINE), command
