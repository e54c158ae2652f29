"""Building and installing as users do, in environments of their own and with the source tree out of reach."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from helpers import OPERATOR_TESTS

import ausam_ext

ROOT = Path(__file__).parent.parent
CHECK = ROOT / "tests" / "packaging" / "check_installed.py"
HERE = torch.__version__.split("+")[0]
BUILT = (".git", ".venv", "build", "dist", "*.egg-info", "*.so", "__pycache__")


def run(*command, cwd, fails=False, **environment):
    """Runs a command where the source tree is not on the path, and returns what it printed.

    Builds leave the CUDA kernels out, which take as long as the rest, unless FORCE_CUDA is given.
    """
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "AUSAM_EXT_BACKEND")}
    own["FORCE_CUDA"] = "0"
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**own, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert (done.returncode != 0) == fails, f"{command} ended with {done.returncode}:\n{done.stdout[-8000:]}"
    return done.stdout


def check(python, folder, kernels="compiled", **environment):
    output = run(python, CHECK, folder, kernels, cwd=folder, **environment)
    return json.loads(output.splitlines()[-1])


def build_wheel(python, source, folder, **environment):
    """pip's own isolated build, against the torch that is installed beside `python`."""
    run(python, "-m", "pip", "wheel", "--no-deps", "-w", folder, source, cwd=folder, **environment)
    return next(folder.glob("*.whl"))


def unpack(wheel, folder):
    """Installs a wheel beside, not into, the environment of `sys.executable`."""
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, wheel, cwd=wheel.parent)
    return folder


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
    assert distribution("ausam_ext").version == ausam_ext.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {ausam_ext.__version__}" in citation


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source tree as it is checked out: pip builds in the tree that it is given."""
    folder = tmp_path_factory.mktemp("source") / "ausam_ext"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*BUILT))
    return folder


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    """Made where there is no torch."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "build", cwd=folder)
    run(python, "-m", "build", "--sdist", "--outdir", folder, source, cwd=folder)
    assert "No module named 'torch'" in run(python, "-c", "import torch", cwd=folder, fails=True)
    shutil.rmtree(folder / "venv")
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Made of the sdist, for the torch that runs these tests."""
    return build_wheel(sys.executable, sdist, tmp_path_factory.mktemp("wheel"))


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
    csrc = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert (
        csrc | {"LICENSE", "README.md", "setup.py", "setup_cuda.py", "pyproject.toml", "ausam_ext/py.typed"}
        <= files
    )
    assert not [f for f in files if f.endswith((".so", ".o", ".pyc"))]


@pytest.mark.install
def test_wheel_holds_the_package_alone(wheel):
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
    """With CUDA kernels where that torch has CUDA and nvcc is found: they stay aside where torch has none."""
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


@pytest.fixture
def unfit(tmp_path):
    """The CUDA_HOME of an nvcc that compiles nothing."""
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'error: \"quoted\" $reason' >&2; exit 1\n")
    nvcc.chmod(0o755)
    return str(tmp_path / "cuda")


@pytest.mark.install
def test_editable_install_follows_the_schemas(source, environment, unfit, tmp_path):
    """With a toolkit that does not fit, where that torch has CUDA."""
    tree = tmp_path / "tree"
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns(*BUILT))
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


@pytest.mark.install
@pytest.mark.parametrize("found_by", [".pth", "user site"])
def test_the_torch_that_the_interpreter_finds_is_built_against(source, tmp_path, found_by):
    """Whose folder pip's isolated build hides. The compiler compiles nothing: the command is looked at."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *" -c "*) exit 1 ;; esac; exec c++ "$@"\n')
    compiler.chmod(0o755)
    own = {"CXX": str(compiler), "PYTHONUSERBASE": str(tmp_path / "user")}
    options = ["--system-site-packages"] if found_by == "user site" else []
    run(sys.executable, "-m", "venv", *options, tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    if found_by == "user site":
        asked = "import site; print(site.getusersitepackages())"
    else:
        asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = Path(run(python, "-c", asked, cwd=tmp_path, **own).strip())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "elsewhere.pth").write_text(sysconfig.get_path("purelib"))
    output = run(
        *(python, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, source),
        cwd=tmp_path,
        fails=True,
        **own,
    )
    assert f"-I{Path(torch.__file__).parent / 'include'} " in output


@pytest.mark.install
def test_without_isolation_the_build_says_what_to_install(source, tmp_path):
    """With torch there, and nothing else."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    install = ("-m", "pip", "install", "--no-deps", "--no-build-isolation", source)
    run(python, "-m", "pip", "uninstall", "-y", "setuptools", cwd=tmp_path)
    output = run(python, *install, cwd=tmp_path, fails=True)
    assert "ausam_ext: the build needs setuptools: pip install setuptools pybind11 ninja" in output
    run(python, "-m", "pip", "install", "setuptools", "wheel", cwd=tmp_path)
    needs = "ausam_ext: the build needs torch>=2.11, pybind11, ninja: "
    compilers = {"PATH": str(tmp_path / "bin")}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "c++").symlink_to(shutil.which("c++"))
    output = run(python, *install, cwd=tmp_path, fails=True, **compilers)
    assert needs + "pip install 'torch>=2.11' pybind11 ninja" in output
    assert "Traceback" not in output


def build(tree, *command, fails=False, **environment):
    """A command of setup.py in a copy of the source tree."""
    if not tree.exists():
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*BUILT))
    return run(sys.executable, "setup.py", *command, cwd=tree, fails=fails, **environment)


def test_cuda_kernels_that_are_asked_for_are_built_or_the_build_fails(unfit, tmp_path):
    tree = tmp_path / "tree"
    output = build(tree, "build_ext", fails=True, FORCE_CUDA="1", CUDA_HOME=unfit)
    assert "ausam_ext: FORCE_CUDA=1 was set, and the CUDA kernels cannot be built" in output
    assert 'failed: error: "quoted" $reason. Without FORCE_CUDA it installs without them.' in output
    assert "Traceback" not in output
    output = build(tree, "build_ext", fails=True, FORCE_CUDA="1", PATH=str(tmp_path), CXX="c++")
    assert "ausam_ext: FORCE_CUDA=1 was set, and no C++ compiler (c++) was found" in output


def test_modules_that_are_gone_are_not_built(tmp_path):
    """From build/lib, where an earlier build left them."""
    tree, built = tmp_path / "tree", tmp_path / "tree" / "build" / "lib" / "ausam_ext"
    build(tree, "build", PATH=str(tmp_path), CXX="c++")  # without a compiler
    assert (built / "sam.py").exists()
    for stale in ("gone.py", "_C.so", "baselines/gone.py"):
        (built / stale).touch()
    build(tree, "build", PATH=str(tmp_path), CXX="c++")
    assert {p.relative_to(built) for p in built.rglob("*.*")} == {
        p.relative_to(ROOT / "ausam_ext")
        for p in (ROOT / "ausam_ext").rglob("*.*")
        if p.suffix != ".so" and "__pycache__" not in p.parts
    }
    build(tree, "build", "--build-lib", ".", PATH=str(tmp_path), CXX="c++")  # into the source tree itself
    assert (tree / "ausam_ext" / "sam.py").exists()


@pytest.mark.install
@pytest.mark.skipif(shutil.which("clang++") is None, reason="there is no clang++")
def test_clang_builds_kernels_that_pass(sdist, tmp_path):
    folder = unpack(build_wheel(sys.executable, sdist, tmp_path, CXX="clang++"), tmp_path / "site")
    report = run(sys.executable, "-m", "ausam_ext", cwd=folder, PYTHONPATH=str(folder))
    assert "built with clang" in report and "cpu: compiled kernels" in report
    tests = (f"{name}.py" for name in sorted(OPERATOR_TESTS))
    options = ("-q", "-p", "no:cacheprovider", "--backend=compiled")
    output = run(sys.executable, "-m", "pytest", *options, *tests, cwd=ROOT / "tests", PYTHONPATH=str(folder))
    assert " passed" in output.splitlines()[-1]


@pytest.mark.install
def test_no_compiler_leaves_the_reference(sdist, tmp_path):
    without = {"PATH": str(tmp_path), "CXX": "c++"}  # what an unset CXX means
    folder = unpack(build_wheel(sys.executable, sdist, tmp_path, **without), tmp_path / "site")
    check(sys.executable, folder, kernels="reference", PYTHONPATH=str(folder))
    report = run(sys.executable, "-m", "ausam_ext", cwd=folder, PYTHONPATH=str(folder))
    assert "cpu: reference kernels" in report
    assert "no C++ compiler" in report
    assert "apt install g++" in report


@pytest.mark.install
def test_compile_error_fails_the_build(source, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(source, broken, ignore=shutil.ignore_patterns(*BUILT))
    with (broken / "csrc" / "module.cpp").open("a") as module:
        module.write("#error deliberately broken\n")
    output = run(sys.executable, "-m", "pip", "wheel", "--no-deps", broken, cwd=tmp_path, fails=True)
    assert "#error deliberately broken" in output
