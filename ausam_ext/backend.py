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
            "or no Python headers: install them (Debian: apt install g++ python3-dev), then reinstall "
            "ausam_ext with pip's --force-reinstall --no-deps --no-cache-dir",
        )
    except ImportError as error:
        return Backend("reference", f"the compiled kernels do not load: {error}")
    return Backend("compiled", "")


def _load_cuda() -> Backend:
    if torch.version.cuda is None:
        return Backend("reference", f"torch {torch.__version__} is built without CUDA")
    library = next(Path(__file__).parent.glob("_C_cuda*.so"), None)
    if library is None:
        return Backend(
            "reference",
            "the CUDA kernels have not been run on a GPU yet and are built on demand: with nvcc of CUDA "
            f"{torch.version.cuda}, FORCE_CUDA=1 pip install --force-reinstall --no-deps --no-cache-dir .",
        )
    try:
        # Its symbols have to be visible to a library that is not linked to it.
        ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"), ctypes.RTLD_GLOBAL)
        torch.ops.load_library(library)
    except OSError as error:
        return Backend("reference", f"the CUDA kernels do not load: {error}")
    return Backend("compiled", "")


def backends() -> dict[str, Backend]:
    """The kernels that serve each device: ``{"cpu": Backend(kernels, reason), "cuda": ...}``."""
    return dict(_loaded)
