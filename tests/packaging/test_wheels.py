"""What a wheel and an sdist hold, and that they run with another torch than the one they were built with."""

import shutil
import sys
import tarfile
import zipfile

import pytest
import torch
from environments import ROOT, build_wheel, check, copy_tree, run, unpack

import ausam_ext

HERE = torch.__version__.split("+")[0]


@pytest.fixture(scope="module", params=["torch==2.11.0", "torch"], ids=["oldest", "newest"])
def environment(request, tmp_path_factory):
    """The Python of an environment with another torch: several GB, so there is one at a time."""
    folder = tmp_path_factory.mktemp("environment")
    python = folder / "bin" / "python"
    try:
        run(sys.executable, "-m", "venv", folder, cwd=folder)
        if request.param == "torch":  # the newest pip too; the oldest torch goes with the one of this Python
            run(python, "-m", "pip", "install", "--upgrade", "pip", cwd=folder)
        run(python, "-m", "pip", "install", "--no-cache-dir", request.param, cwd=folder)
        yield python
    finally:
        shutil.rmtree(folder)


@pytest.mark.install
def test_sdist_holds_the_sources(sdist):
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"LICENSE", "README.md", "setup.py", "pyproject.toml", "ausam_ext/py.typed"}
    for folder, pattern in (("csrc", "*.*"), ("build_tools", "*.py")):
        needed |= {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob(pattern)}
    assert needed <= files
    assert not [f for f in files if f.endswith((".so", ".o", ".pyc"))]


@pytest.mark.install
def test_wheel_holds_only_the_package(wheel):
    """For every Python from 3.10 on."""
    assert "-cp310-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
    assert {f.partition("/")[0] for f in files} == {
        "ausam_ext",
        f"ausam_ext-{ausam_ext.__version__}.dist-info",
    }
    assert not [f for f in files if f.endswith((".cpp", ".h", ".cu", ".cuh")) or "_C_cuda" in f]
    python = {str(p.relative_to(ROOT)) for p in (ROOT / "ausam_ext").rglob("*.py")}
    assert python | {"ausam_ext/py.typed"} <= files
    assert [f for f in files if f.endswith("/LICENSE")]


@pytest.mark.install
def test_wheel_runs_under_another_torch(wheel, environment):
    run(environment, "-m", "pip", "install", "--no-deps", wheel, cwd=wheel.parent)
    versions = check(environment, environment.parent.parent)
    print(f"built with torch {versions['built_with']}, ran under {versions['torch']}")
    assert versions["built_with"] == HERE  # and not with a torch that pip fetched for the build


@pytest.mark.install
def test_wheel_built_with_another_torch_runs_here(sdist, environment, tmp_path):
    """With CUDA kernels if that torch has CUDA and nvcc is found: they are not loaded if torch has none."""
    other = run(environment, "-c", "import torch; print(torch.__version__)", cwd=tmp_path).splitlines()[-1]
    has_cuda = run(environment, "-c", "import torch; print(torch.version.cuda)", cwd=tmp_path).splitlines()[
        -1
    ]
    folder = unpack(build_wheel(environment, sdist, tmp_path, FORCE_CUDA=""), tmp_path / "site")
    own = check(environment, folder, PYTHONPATH=str(folder))
    versions = check(sys.executable, folder, PYTHONPATH=str(folder))
    toolkit = versions["built_with_cuda"] or "none"
    print(f"built with torch {other}, CUDA {toolkit}, ran under {own['torch']} and {HERE}")
    assert versions["torch"] == HERE
    assert versions["built_with"] == own["built_with"] == other.partition("+")[0]
    assert (toolkit != "none") == bool(has_cuda != "None" and shutil.which("nvcc"))


@pytest.mark.install
def test_editable_install_follows_the_schemas(source, environment, unfit, tmp_path):
    """With a toolkit that does not fit, if that torch has CUDA."""
    tree = tmp_path / "tree"
    copy_tree(source, tree)
    install = ("-m", "pip", "install", "--no-deps", "-e", tree)
    run(environment, *install, cwd=tmp_path, FORCE_CUDA="", CUDA_HOME=unfit)
    has_cuda = run(environment, "-c", "import torch; print(torch.version.cuda)", cwd=tmp_path) != "None\n"
    reason = "failed: error: 'quoted' 'reason" if has_cuda else "the torch of the build had no CUDA"
    assert reason in check(environment, tree)["no_cuda"]
    library = tree / "ausam_ext" / "ops" / "registration.py"
    library.write_text(library.read_text().replace("bool adaptive=False", "bool adaptive=True"))
    check(environment, tree, kernels="reference")
    run(environment, *install, cwd=tmp_path, FORCE_CUDA="0")
    assert "FORCE_CUDA=0" in check(environment, tree)["no_cuda"]
