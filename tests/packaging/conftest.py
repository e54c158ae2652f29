"""What several tests of packaging build, once."""

import shutil
import sys

import pytest
from environments import ROOT, build_wheel, copy_tree, run


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    return copy_tree(ROOT, tmp_path_factory.mktemp("source") / "ausam_ext")


@pytest.fixture(scope="session")
def sdist(source, tmp_path_factory):
    """Made without torch."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "build", cwd=folder)
    run(python, "-m", "build", "--sdist", "--outdir", folder, source, cwd=folder)
    assert "No module named 'torch'" in run(python, "-c", "import torch", cwd=folder, fails=True)
    shutil.rmtree(folder / "venv")
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory):
    """Made of the sdist, for the torch that runs these tests."""
    return build_wheel(sys.executable, sdist, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def unfit(tmp_path):
    """The CUDA_HOME of an nvcc that compiles nothing."""
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'error: \"quoted\" $reason' >&2; exit 1\n")
    nvcc.chmod(0o755)
    return str(tmp_path / "cuda")
