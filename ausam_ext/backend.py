"""Which kernels are live, and why others are not."""

import ctypes
import os
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch


class Backend(NamedTuple):
    kernels: str  #: "compiled" or "reference"
    reason: str  #: why it is not "compiled", and what to do about it; empty where it is


_REINSTALL = "reinstall ausam_ext with pip's --force-reinstall --no-deps --no-cache-dir"
_loaded: dict[str, Backend] = {}


def load() -> None:
    """Registers the compiled kernels with the dispatcher, unless ``AUSAM_EXT_BACKEND=reference``."""
    choice = os.environ.get("AUSAM_EXT_BACKEND", "")
    if choice not in ("", "reference"):
        raise ValueError(f"AUSAM_EXT_BACKEND: expected 'reference' or nothing, got {choice!r}")
    if choice == "reference":
        forced = Backend("reference", "AUSAM_EXT_BACKEND=reference is set")
        _loaded.update(cpu=forced, cuda=forced)
        return
    _loaded["cpu"] = _load_cpu()
    _loaded["cuda"] = _load_cuda()


def _load_cpu() -> Backend:
    try:
        import_module("._C", __package__)
    except ModuleNotFoundError:
        return Backend(
            "reference",
            "ausam_ext was installed without compiled kernels, because the machine had no C++ compiler "
            f"or no Python headers: install them (Debian: apt install g++ python3-dev), then {_REINSTALL}",
        )
    except ImportError as error:
        return Backend("reference", f"the compiled kernels do not load: {error}")
    return Backend("compiled", "")


def _load_cuda() -> Backend:
    if torch.version.cuda is None:
        return Backend("reference", f"torch {torch.__version__} is built without CUDA")
    try:
        build = import_module("._C", __package__)
    except ImportError:
        return Backend("reference", _loaded["cpu"].reason)  # they are built together
    library = next(Path(__file__).parent.glob("_C_cuda*.so"), None)
    if library is None:
        return Backend(
            "reference", f"ausam_ext was installed without CUDA kernels ({build.no_cuda}); {_REINSTALL}"
        )
    driver, (major, minor) = _cuda_of_driver(), map(int, build.built_with_cuda.split(".")[:2])
    # A driver runs what any toolkit of its major version built, but for kernels with more than 4 KB of
    # arguments, which are CUDA 12.1's.
    if driver and driver < ((12, 1) if (12, 1) <= (major, minor) < (13, 0) else (major, 0)):
        runs = f"CUDA {driver[0]}.{driver[1]}"
        return Backend(
            "reference",
            f"the CUDA kernels were built with CUDA {build.built_with_cuda} and the driver runs {runs}: "
            f"update the driver, or with nvcc of {runs} {_REINSTALL}",
        )
    try:
        # Its symbols have to be visible to a library that is not linked to it.
        ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"), ctypes.RTLD_GLOBAL)
        torch.ops.load_library(library)
    except OSError as error:
        return Backend("reference", f"the CUDA kernels do not load: {error}")
    return Backend("compiled", "")


def _cuda_of_driver() -> tuple[int, int] | None:
    """The latest CUDA that the driver runs, asked without initialising it; None where there is no driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)


def backends() -> dict[str, Backend]:
    """The kernels that serve each device: ``{"cpu": Backend(kernels, reason), "cuda": ...}``."""
    return dict(_loaded)
