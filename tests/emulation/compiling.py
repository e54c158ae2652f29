"""Builds csrc/cuda/*.cu for the host, against tests/emulation/cuda_runtime.h in the place of CUDA's."""

import hashlib
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
RUNTIME = [HERE / name for name in ("fiber.cpp", "scheduler.cpp", "launch.cpp", "races.cpp")]

FLAGS = [
    *("-x", "c++", "-std=c++20", "-O1", "-g", "-fPIC", "-Wall", "-Werror"),
    *("-fvisibility=hidden", "-fno-strict-aliasing"),  # shared memory holds one type after another
    "-ffp-contract=off",  # nvcc's -fmad=false
]
VARIANTS = {
    "plain": [],
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    # g++ announces all loads and stores; races.cpp listens in the place of ThreadSanitizer's runtime.
    "races": ["-fsanitize=thread", "--param=tsan-distinguish-volatile=1", "-DEMULATION_RACES"],
}

LONG_TABLES = "-long-tables"  # appended to a variant: as CUDA 12.1 and later compile list.cuh
# One dispatch key for each that a process may load: the last library under a key gets all its calls.
KEYS = {False: "PrivateUse1", True: "PrivateUse2"}  # by whether the tables are long


def compiler():
    return os.environ.get("CXX", "c++")


@cache
def _compiler_version():
    return subprocess.run([compiler(), "-v"], check=True, capture_output=True, text=True).stderr


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")


def _made(output, digest, make):
    """The file `output` with a digest in its name, made unless it is there already."""
    path = output.with_name(f"{output.stem}-{digest[:16]}{output.suffix}")
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        make(partial)
        partial.rename(path)
        for old in set(path.parent.glob(f"{output.stem}-*{output.suffix}")) - {path}:
            old.unlink(missing_ok=True)
    return path


def _digest(*parts):
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _compile(source, folder, flags, headers):
    digest = _digest(_compiler_version(), flags, source, source.read_text(), headers)
    return _made(
        folder / f"{source.stem}.o", digest, lambda out: _run([compiler(), *flags, "-c", source, "-o", out])
    )


def sanitized_environment():
    """For a process that loads a library of the variant "asan"."""
    libraries = [
        subprocess.run(
            [compiler(), f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=0",
        "PYTHONMALLOC": "malloc",  # so that every object has its redzone
    }


def build(folder, variant="plain"):
    """The library of the product's operators; `folder` keeps what was compiled for the next time."""
    import torch

    at = Path(torch.__file__).parent
    flags = [
        *("-include", "cuda_runtime.h", "-include", "registration.h"),
        *("-isystem", at / "include", "-isystem", at / "include/torch/csrc/api/include"),
        *("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
    ]
    libraries = ["-L", at / "lib", "-ltorch_cpu", "-lc10"]
    sources = sorted(CSRC.glob("cuda/*.cu"))
    return _link(
        "ausam_cuda", sources, [*RUNTIME, HERE / "torch_stubs.cpp"], folder, variant, flags, libraries
    )


def build_cpu(name, sources, folder):
    """A library of CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer."""
    import torch

    from ausam_ext.ops.registration import STAMP

    at = Path(torch.__file__).parent
    folder = Path(folder) / "cpu-asan"
    folder.mkdir(parents=True, exist_ok=True)
    headers = [p.read_text() for p in sorted(CSRC.rglob("*.h"))]
    flags = [
        *("-std=c++20", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"),
        *VARIANTS["asan"],
        *("-isystem", at / "include", "-isystem", at / "include/torch/csrc/api/include"),
        *("-isystem", sysconfig.get_path("include")),
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        *('-DAUSAM_BUILT_WITH_CUDA=""', '-DAUSAM_CUDA_ARCHS=""', '-DAUSAM_NO_CUDA="not of interest"'),
        f'-DAUSAM_SCHEMAS="{STAMP}"',
    ]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda s: _compile(s, folder, flags, headers), sources))
    command = [compiler(), "-shared", "-fsanitize=address,undefined", *objects]
    command += ["-L", at / "lib", "-ltorch_cpu", "-lc10"]
    return _made(folder / f"{name}.so", _digest(command), lambda out: _run([*command, "-o", out]))


def build_kernels(source, folder, variant="plain"):
    """A library of kernels that do without torch."""
    return _link(source.stem, [source], RUNTIME, folder, variant, ["-include", "cuda_runtime.h"], [])


def _link(name, sources, runtime, folder, variant, flags, libraries):
    folder = Path(folder) / variant
    folder.mkdir(parents=True, exist_ok=True)
    long_tables, variant = variant.endswith(LONG_TABLES), variant.removesuffix(LONG_TABLES)
    headers = [p.read_text() for at in (HERE, CSRC) for p in sorted(at.rglob("*.*h"))]
    common = [*FLAGS, *VARIANTS[variant], "-I", HERE, f"-DEMULATION_KEY={KEYS[long_tables]}"]
    if long_tables:
        common.append("-DCUDART_VERSION=12010")
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(_compile, s, folder, [*common, *flags], headers) for s in sources]
        own = [f for f in common if f != "-fsanitize=thread"]  # the runtime is not watched
        jobs += [pool.submit(_compile, s, folder, own, headers) for s in runtime]
        objects = [job.result() for job in jobs]
    sanitize = [f for f in VARIANTS[variant] if "address" in f]
    if not sanitize:
        libraries = ["-Wl,-z,defs", *libraries]  # ASan's runtime is the process's
    command = [compiler(), "-shared", "-Wl,-Bsymbolic", *sanitize, *objects, *libraries]
    return _made(folder / f"{name}.so", _digest(command), lambda out: _run([*command, "-o", out]))
