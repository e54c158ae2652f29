"""How the build finds torch, and what it says and does if something is missing or broken."""

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from environments import ROOT, build_wheel, check, copy_tree, run, unpack


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
    assert "ausam_ext: the build needs setuptools: pip install setuptools ninja" in output
    run(python, "-m", "pip", "install", "setuptools", "wheel", cwd=tmp_path)
    needs = "ausam_ext: the build needs torch>=2.11, ninja: "
    compilers = {"PATH": str(tmp_path / "bin")}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "c++").symlink_to(shutil.which("c++"))
    output = run(python, *install, cwd=tmp_path, fails=True, **compilers)
    assert needs + "pip install 'torch>=2.11' ninja" in output
    assert "Traceback" not in output


def build(tree, *command, fails=False, **environment):
    """A command of setup.py in a copy of the source tree."""
    if not tree.exists():
        copy_tree(ROOT, tree)
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
    options = ("-q", "-p", "no:cacheprovider", "--backend=compiled")
    output = run(sys.executable, "-m", "pytest", *options, "ops", cwd=ROOT / "tests", PYTHONPATH=str(folder))
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
    copy_tree(source, broken)
    with (broken / "csrc" / "module.cpp").open("a") as module:
        module.write("#error deliberately broken\n")
    output = run(sys.executable, "-m", "pip", "wheel", "--no-deps", broken, cwd=tmp_path, fails=True)
    assert "#error deliberately broken" in output
