"""How build_tools/cuda.py chooses, and what nvcc makes of csrc/cuda with warnings as errors.

The tests that are marked fail, and do not skip, where there is no nvcc.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import kernel_resources
import pytest
from kernel_resources import SOURCES, STRICT, TARGET, build_cuda, succeed

ROOT = Path(__file__).parents[2]
FAKE_NVCC = """#!/bin/sh
case "$*" in
--version) echo "Cuda compilation tools, release 12.4, V12.4.99" ;;
--list-gpu-arch) printf 'compute_%s\\n' 50 70 75 80 86 89 90 ;;
*) echo "host_config.h:143: error: unsupported GNU version!" >&2; exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def toolkit():
    return build_cuda.find_toolkit()


@pytest.fixture(scope="module")
def ptx(toolkit, tmp_path_factory):
    return kernel_resources.intermediate(toolkit, tmp_path_factory.mktemp("ptx"))


@pytest.fixture
def fake_nvcc(tmp_path, monkeypatch):
    """An nvcc of CUDA 12.4 that compiles nothing."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text(FAKE_NVCC)
    nvcc.chmod(0o755)
    return nvcc


def test_no_nvcc_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(build_cuda.Unfit, match="no nvcc was found: install the CUDA toolkit"):
        build_cuda.build(tmp_path / "out.so", SOURCES, tmp_path / "cuda", TARGET)


def test_a_toolkit_that_does_not_fit_is_no_error(fake_nvcc, tmp_path):
    with pytest.raises(build_cuda.Unfit, match=r"does not fit.*error: unsupported GNU version!"):
        build_cuda.build(tmp_path / "out.so", SOURCES, tmp_path / "cuda", TARGET)
    fake_nvcc.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(build_cuda.Unfit, match="failed"):
        build_cuda.build(tmp_path / "out.so", SOURCES, tmp_path / "cuda", TARGET)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([], ["7.5", "8.0", "9.0+PTX"]),
        ([(8, 6)], ["8.6+PTX"]),
        ([(9, 0), (8, 6), (9, 0)], ["8.6", "9.0+PTX"]),
        ([(12, 0)], ["9.0+PTX"]),  # newer than nvcc: the driver compiles the PTX
    ],
)
def test_architectures_are_those_of_the_machine(fake_nvcc, monkeypatch, gpus, expected):
    cuda = build_cuda.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(cuda, "get_device_capability", lambda i: gpus[i])
    toolkit = build_cuda.find_toolkit()
    assert toolkit.version == "12.4"
    assert build_cuda.architectures(toolkit) == expected
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.9; 10.0a+PTX")
    assert build_cuda.architectures(toolkit) == ["8.9", "10.0a+PTX"]
    assert build_cuda.command(toolkit, ["8.9", "10.0a+PTX"], TARGET)[-2:] == [
        "-gencode=arch=compute_89,code=[sm_89]",
        "-gencode=arch=compute_100a,code=[sm_100a,compute_100a]",
    ]


@pytest.mark.parametrize(
    ("choice", "cuda", "refused"),
    [("", "13.0", None), ("", None, "no CUDA"), ("1", None, None), ("0", "13.0", "FORCE_CUDA=0")],
)
def test_built_where_torch_has_cuda_or_the_variable_says_so(monkeypatch, choice, cuda, refused):
    monkeypatch.setenv("FORCE_CUDA", choice)
    monkeypatch.setattr(build_cuda.torch.version, "cuda", cuda)
    with pytest.raises(build_cuda.Unfit, match=refused) if refused else nullcontext():
        build_cuda.check_wanted()


def test_a_misspelt_choice_is_refused(monkeypatch):
    monkeypatch.setenv("FORCE_CUDA", "yes")
    with pytest.raises(SystemExit, match="FORCE_CUDA: expected 0, 1 or nothing, got 'yes'"):
        build_cuda.check_wanted()


@pytest.mark.cuda_build
def test_registers_and_occupancy_on_every_architecture(toolkit, ptx, tmp_path):
    """From sm_75 to the newest that nvcc knows: no spills, and what was recorded with this release."""
    measured, recorded = kernel_resources.measure(toolkit, ptx, tmp_path), kernel_resources.RECORD.read_text()
    print(measured)
    if measured.split(".")[:2] == recorded.split(".")[:2]:
        assert measured == recorded, "run: python tests/cuda_build/kernel_resources.py"


# What nvcc may fuse, or divide otherwise than IEEE says.
LEFT_OPEN = re.compile(
    r"^\s*(?:(?:add|sub|mul|mad)(?:\.ftz)?\.f(?:32|64)|(?:div|rcp|sqrt)\.(?:approx|full)\S*) .*", re.MULTILINE
)


@pytest.mark.cuda_build
def test_no_rounding_is_left_to_nvcc(toolkit, ptx, tmp_path):
    """Kernels write plain a * b + c: the build's options say that it rounds twice."""
    assert not LEFT_OPEN.findall(ptx)
    assert "mul.rn.f32" in ptx and "add.rn.f64" in ptx and "div.rn.f32" in ptx
    (tmp_path / "two.cu").write_text("__global__ void two(float* x) { *x = *x * *x / 3 - 1; }")
    command = build_cuda.command(toolkit, ["7.5"], TARGET)
    command[-1] = "-arch=compute_75"
    for options, expected in ([], False), (["-fmad=true"], True), (["-prec-div=false"], True):
        succeed([*command, *options, "-ptx", tmp_path / "two.cu", "-o", tmp_path / "two.ptx"])
        made = (tmp_path / "two.ptx").read_text()
        assert bool(LEFT_OPEN.findall(made) or "fma.rn" in made) == expected, made


@pytest.mark.cuda_build
def test_library_needs_neither_torch_nor_cuda(toolkit, tmp_path):
    """With the host's part. CUDA's runtime is inside, and torch is found when the library is loaded."""
    library = tmp_path / "kernels.so"
    compile = build_cuda.command(toolkit, ["7.5+PTX"], TARGET)
    succeed([*compile, *STRICT, build_cuda.one_source(tmp_path, SOURCES), "-shared", "-o", library])
    needed = [line for line in succeed(["readelf", "-d", library]).splitlines() if "NEEDED" in line]
    assert needed and "cuda" not in "".join(needed)


@pytest.mark.cuda_build
def test_an_error_in_a_kernel_fails_the_build(toolkit, tmp_path):
    """Though a toolkit that does not fit would not."""
    shutil.copytree(
        ROOT, tmp_path / "tree", ignore=shutil.ignore_patterns(".*", "build", "*.so", "__pycache__")
    )
    with (tmp_path / "tree" / "csrc" / "cuda" / "adlp.cuh").open("a") as kernels:
        kernels.write("#error deliberately broken\n")
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=tmp_path / "tree",
        env={**os.environ, "FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "7.5"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "#error deliberately broken" in done.stdout + done.stderr
    assert "FORCE_CUDA=0 installs without CUDA kernels" in done.stderr
