"""Builds csrc/cuda with nvcc.

Any CUDA toolkit will do, whichever CUDA torch is built with: the library has CUDA's runtime inside, needs
only the driver, and reaches torch through its stable ABI. So nvcc is called without torch's own build, which
refuses a toolkit of another major version.
"""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[1]
DEFAULT = {(7, 5), (8, 0), (9, 0)}  # with PTX of the last: everything from Turing on


class Unfit(Exception):
    """Why there are no CUDA kernels, and what to do about it."""


def check_wanted() -> None:
    """Unfit if CUDA kernels are not asked for."""
    choice = os.environ.get("FORCE_CUDA", "")
    if choice not in ("", "0", "1"):
        sys.exit(f"ausam_ext: FORCE_CUDA: expected 0, 1 or nothing, got {choice!r}")
    if choice == "0":
        raise Unfit("FORCE_CUDA=0 was set: leave it out")
    if not choice and torch.version.cuda is None:
        raise Unfit("the torch of the build had no CUDA: install one that has")


class Toolkit(NamedTuple):
    nvcc: str
    version: str

    def known(self) -> set[tuple[int, int]]:
        """The architectures that it compiles for."""
        names = re.findall(r"compute_(\d+)(\d)$", _output(self.nvcc, "--list-gpu-arch"), re.MULTILINE)
        return {(int(major), int(minor)) for major, minor in names}


def _output(*command) -> str:
    """What a command printed; Unfit if it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise Unfit(f"{command[0]} does not start: {error}") from error
    if done.returncode:
        said = (done.stderr + done.stdout).strip()
        error = next((line for line in said.splitlines() if "error" in line or "fatal" in line), said)
        raise Unfit(f"{command[0]} failed: {error.strip()[:300]}") from RuntimeError(said)
    return done.stdout + done.stderr


def find_toolkit() -> Toolkit:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = f"{home}/bin" if home else f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin"
    nvcc = shutil.which("nvcc", path=path)
    if nvcc is None:
        raise Unfit("no nvcc was found: install the CUDA toolkit, with nvcc on the PATH or in CUDA_HOME")
    version = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    if version is None:
        raise Unfit(f"{nvcc} --version names no release")
    return Toolkit(nvcc, version[1])


def architectures(toolkit: Toolkit) -> list[str]:
    """As in TORCH_CUDA_ARCH_LIST, which comes first; then the GPUs of this machine; then a short list."""
    if listed := re.findall(r"[^\s;,]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "")):
        return listed
    wanted = DEFAULT
    if torch.cuda.is_available():
        wanted = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    known = toolkit.known()
    numbers = [f"{major}.{minor}" for major, minor in sorted(wanted & known) or [max(known)]]
    return [*numbers[:-1], numbers[-1] + "+PTX"]


def _target(arch: str) -> str:
    number, ptx, _ = arch.partition("+PTX")
    number = number.replace(".", "")
    return f"-gencode=arch=compute_{number},code=[sm_{number}{f',compute_{number}' if ptx else ''}]"


def command(toolkit: Toolkit, archs: list[str], target: str) -> list[str]:
    """nvcc without source and output."""
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
    return [
        *(toolkit.nvcc, "-O3", "-std=c++20"),
        "-fmad=false",  # the same bits on every processor (see reference.py)
        *("-Xcompiler=-fPIC,-fvisibility=hidden,-g0,-Wall", "-Wno-deprecated-gpu-targets"),
        *("-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={target}"),
        *(part for path in include_paths() for part in ("-isystem", path)),
        *(f"--threads={jobs}", *map(_target, archs)),
    ]


def schemas() -> str:
    """What kernels of other schemas are told by, read without torch's operators being defined."""
    for statement in ast.parse((ROOT / "ausam_ext" / "ops" / "registration.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "_SCHEMAS":
            return hashlib.sha256(ast.literal_eval(statement.value).encode()).hexdigest()
    raise AssertionError("ausam_ext/ops/registration.py assigns no _SCHEMAS")


def one_source(folder: Path, sources: list[str], heading: str = "") -> Path:
    """All launchers in one file: the headers that each includes take longer to compile than its kernels."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "kernels.cu"
    text = f"// {heading}\n" + "".join(f'#include "{ROOT / path}"\n' for path in sources)
    text += 'extern __attribute__((visibility("default"))) const char ausam_schemas[];\n'  # as in module.cpp
    text += f'const char ausam_schemas[] = "{schemas()}";\n'
    if not source.exists() or source.read_text() != text:
        source.write_text(text)
    return source


def _check_toolkit(compile: list[str], folder: Path) -> None:
    """Unfit if the toolkit cannot even compile and link its own headers and torch's."""
    source = folder / "headers.cu"
    source.write_text(
        "#include <cuda_runtime.h>\n"
        "#include <torch/csrc/stable/accelerator.h>\n"
        "#include <torch/csrc/stable/library.h>\n"
        "#include <torch/csrc/stable/ops.h>\n"
        "#include <torch/csrc/stable/tensor.h>\n"
        "__global__ void set(int* to, const __grid_constant__ int value) { *to = value; }\n"
    )
    try:
        _output(*compile, source, "-shared", "-o", folder / "headers.so")
    except Unfit as unfit:
        raise Unfit(
            f"the CUDA toolkit does not fit: {unfit}; install one that fits torch and the C++ compiler, "
            "or choose another compiler with NVCC_PREPEND_FLAGS='-ccbin g++-12'"
        ) from unfit


def build(out: Path, sources: list[str], folder: Path, target: str) -> tuple[str, str]:
    """Builds the library; returns the version of CUDA and the architectures. Unfit if the machine cannot."""
    if sys.platform != "linux":
        raise Unfit("the CUDA kernels are built only on Linux")
    toolkit = find_toolkit()
    archs = architectures(toolkit)
    compile = command(toolkit, archs, target)
    library = folder / "kernels.so"
    source = one_source(
        folder, sources, f"CUDA {toolkit.version}: {compile}"
    )  # rewritten if the command changed
    made_of = [source, *ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*")]
    if not library.exists() or any(p.stat().st_mtime >= library.stat().st_mtime for p in made_of):
        library.unlink(missing_ok=True)
        print("ausam_ext:", *compile, source, file=sys.stderr)
        if subprocess.run([*compile, source, "-shared", "-o", library]).returncode:
            _check_toolkit(compile, folder)
            sys.exit("ausam_ext: csrc/cuda does not compile. FORCE_CUDA=0 installs without CUDA kernels.")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(library, out)
    return toolkit.version, ";".join(archs)
