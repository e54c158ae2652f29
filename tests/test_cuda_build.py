"""How setup_cuda.py chooses, and what nvcc makes of csrc/cuda with warnings as errors.

The tests that are marked fail, and do not skip, where there is no nvcc.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TARGET = "0x020b000000000000"
STRICT = ["-Werror=all-warnings", "-Xcompiler=-Werror"]
FAKE_NVCC = """#!/bin/sh
case "$*" in
--version) echo "Cuda compilation tools, release 12.4, V12.4.99" ;;
--list-gpu-arch) printf 'compute_%s\\n' 50 70 75 80 86 89 90 ;;
*) echo "host_config.h:143: error: unsupported GNU version!" >&2; exit 1 ;;
esac
"""
RESOURCES = re.compile(
    r"Compiling entry function '(\w+)' for '(\w+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def setup_cuda():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        import setup_cuda

        yield setup_cuda


@pytest.fixture(scope="module")
def toolkit(setup_cuda):
    return setup_cuda.find_toolkit()


def succeed(command, **options):
    done = subprocess.run(
        [str(part) for part in command],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def plain(name):
    """A kernel's name as it is written."""
    name = succeed(["c++filt", name]).strip()
    return re.sub(r"^void |ausam::cuda::|c10::|\(anonymous namespace\)::", "", name).partition("(")[0]


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


def test_no_nvcc_is_no_error(setup_cuda, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(setup_cuda.Unfit, match="no nvcc was found: install the CUDA toolkit"):
        setup_cuda.build(tmp_path / "out.so", tmp_path / "cuda", TARGET)


def test_a_toolkit_that_does_not_fit_is_no_error(setup_cuda, fake_nvcc, tmp_path):
    with pytest.raises(setup_cuda.Unfit, match=r"does not fit.*error: unsupported GNU version!"):
        setup_cuda.build(tmp_path / "out.so", tmp_path / "cuda", TARGET)
    fake_nvcc.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(setup_cuda.Unfit, match="failed"):
        setup_cuda.build(tmp_path / "out.so", tmp_path / "cuda", TARGET)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([], ["7.5", "8.0", "9.0+PTX"]),
        ([(8, 6)], ["8.6+PTX"]),
        ([(9, 0), (8, 6), (9, 0)], ["8.6", "9.0+PTX"]),
        ([(12, 0)], ["9.0+PTX"]),  # newer than nvcc: the driver compiles the PTX
    ],
)
def test_architectures_are_those_of_the_machine(setup_cuda, fake_nvcc, monkeypatch, gpus, expected):
    cuda = setup_cuda.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(cuda, "get_device_capability", lambda i: gpus[i])
    toolkit = setup_cuda.find_toolkit()
    assert toolkit.version == "12.4"
    assert setup_cuda.architectures(toolkit) == expected
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.9; 10.0a+PTX")
    assert setup_cuda.architectures(toolkit) == ["8.9", "10.0a+PTX"]
    assert setup_cuda.command(toolkit, ["8.9", "10.0a+PTX"], TARGET)[-2:] == [
        "-gencode=arch=compute_89,code=[sm_89]",
        "-gencode=arch=compute_100a,code=[sm_100a,compute_100a]",
    ]


@pytest.mark.parametrize(
    ("choice", "cuda", "refused"),
    [("", "13.0", None), ("", None, "no CUDA"), ("1", None, None), ("0", "13.0", "FORCE_CUDA=0")],
)
def test_built_where_torch_has_cuda_or_the_variable_says_so(setup_cuda, monkeypatch, choice, cuda, refused):
    monkeypatch.setenv("FORCE_CUDA", choice)
    monkeypatch.setattr(setup_cuda.torch.version, "cuda", cuda)
    with pytest.raises(setup_cuda.Unfit, match=refused) if refused else nullcontext():
        setup_cuda.wanted()


def test_a_misspelt_choice_is_refused(setup_cuda, monkeypatch):
    monkeypatch.setenv("FORCE_CUDA", "yes")
    with pytest.raises(SystemExit, match="FORCE_CUDA: expected 0, 1 or nothing, got 'yes'"):
        setup_cuda.wanted()


@pytest.mark.cuda_build
def test_every_architecture_compiles_without_spills(setup_cuda, toolkit, tmp_path):
    """From sm_75 to the newest that nvcc knows. Prints registers and shared memory of every kernel."""
    archs = [f"{major}.{minor}" for major, minor in sorted(toolkit.known()) if (major, minor) >= (7, 5)]
    source = setup_cuda.one_source(tmp_path)

    def compile(arch):
        # To device code alone: what the host compiles is the same for all.
        return succeed(
            [
                *setup_cuda.command(toolkit, [arch], TARGET),
                *(*STRICT, "-Xptxas=-v", "-cubin", source, "-o", tmp_path / f"{arch}.cubin"),
            ]
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(compile, archs))
    kernels = {}  # name -> architecture -> (registers, shared memory)
    for report in reports:
        found = RESOURCES.findall(report)
        assert len(found) == report.count("Compiling entry function") > 0, report[-4000:]
        for name, arch, *numbers in found:
            stack, stores, loads, registers, shared = (int(n or 0) for n in numbers)
            assert (stack, stores, loads) == (0, 0, 0), f"{plain(name)} on {arch} keeps data in local memory"
            assert registers <= 64, f"{plain(name)} on {arch}: no block of 1024 threads"
            kernels.setdefault(name, {})[arch] = (registers, shared)
    assert all(len(by_arch) == len(archs) for by_arch in kernels.values())
    columns = [f"sm_{arch.replace('.', '')}" for arch in archs]
    print("\nRegisters of a thread and static shared memory of a block, where there is any")
    print(f"{'kernel':60}", *(f"{c:>7}" for c in columns))
    for name, by_arch in sorted(kernels.items(), key=lambda item: plain(item[0])):
        cells = (f"{r}+{s}" if s else f"{r}" for r, s in (by_arch[c] for c in columns))
        print(f"{plain(name):60}", *(f"{cell:>7}" for cell in cells))


@pytest.mark.cuda_build
def test_library_needs_neither_torch_nor_cuda(setup_cuda, toolkit, tmp_path):
    """With the host's part. CUDA's runtime is inside, and torch is found when the library is loaded."""
    library = tmp_path / "kernels.so"
    compile = setup_cuda.command(toolkit, ["7.5+PTX"], TARGET)
    succeed([*compile, *STRICT, setup_cuda.one_source(tmp_path), "-shared", "-o", library])
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
