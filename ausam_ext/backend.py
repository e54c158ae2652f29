"""Which kernels are used, and why others are not."""

import ctypes
import os
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Backend(NamedTuple):
    kernels: str  #: "compiled" or "reference"
    reason: str  #: why it is not "compiled", and what to do about it; empty if it is


_REINSTALL = "reinstall ausam_ext with pip's --force-reinstall --no-deps --no-cache-dir"
_loaded: dict[str, Backend] = {}
_unsaid: set[str] = set()  # devices of whose fallback to the reference nothing was said yet


def load(stamp: str) -> None:
    """Registers the compiled kernels with the dispatcher, unless ``AUSAM_EXT_BACKEND=reference``.

    Those that were built for other schemas, and lack the ``stamp`` of these, would misread their arguments.
    """
    choice = os.environ.get("AUSAM_EXT_BACKEND", "")
    if choice not in ("", "reference"):
        raise ValueError(f"AUSAM_EXT_BACKEND: expected 'reference' or nothing, got {choice!r}")
    if choice == "reference":
        forced = Backend("reference", "AUSAM_EXT_BACKEND=reference is set")
        _loaded.update(cpu=forced, cuda=forced)
        return
    _loaded["cpu"] = _load_cpu(stamp)
    _loaded["cuda"] = _load_cuda(stamp)
    _unsaid.update(device for device, backend in _loaded.items() if backend.kernels == "reference")


def _other_version(library: Path, stamp: str) -> Backend | None:
    """Why a library is not loaded: that would register its kernels."""
    if stamp.encode() in library.read_bytes():
        return None
    here = Path(__file__).parent
    delete = "delete it and " if library.parent == here else ""
    return Backend(
        "reference",
        f"{library} was built for another version of ausam_ext than {here}: {delete}{_REINSTALL}",
    )


def _load_cpu(stamp: str) -> Backend:
    found = find_spec("._C", __package__)
    if found is None or found.origin is None:
        return Backend(
            "reference",
            "there are no compiled kernels, as the machine that installed ausam_ext had no C++ compiler or "
            f"no Python headers: install them (Debian: apt install g++ python3-dev), then {_REINSTALL}",
        )
    if other := _other_version(Path(found.origin), stamp):
        return other
    try:
        import_module("._C", __package__)
    except ImportError as error:
        return Backend("reference", f"the compiled kernels do not load ({error}): {_REINSTALL}")
    return Backend("compiled", "")


def _load_cuda(stamp: str) -> Backend:
    if torch.version.cuda is None:
        return Backend("reference", f"torch {torch.__version__} is built without CUDA")
    if _loaded["cpu"].kernels == "reference":
        return _loaded["cpu"]  # they are built together
    build = import_module("._C", __package__)
    library = next(Path(str(build.__file__)).parent.glob("_C_cuda*.so"), None)
    if library is None:
        return Backend(
            "reference", f"ausam_ext was installed without CUDA kernels ({build.no_cuda}); {_REINSTALL}"
        )
    if other := _other_version(library, stamp):
        return other
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
        return Backend("reference", f"the CUDA kernels do not load ({error}): {_REINSTALL}")
    return Backend("compiled", "")


def _cuda_of_driver() -> tuple[int, int] | None:
    """The latest CUDA that the driver runs, asked without initialising it; None if there is no driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)


def warn_of_reference(arguments: Tensor | Sequence[Tensor]) -> None:
    """Says once for each device that its tensors go to the reference, if nobody chose that."""
    first = arguments if isinstance(arguments, Tensor) else next(iter(arguments), None)
    if first is not None and (device := first.device.type) in _unsaid:
        _unsaid.discard(device)
        message = f"ausam_ext runs on its slower reference on {device}: {_loaded[device].reason}"
        warnings.warn(message, stacklevel=2)


def backends() -> dict[str, Backend]:
    """The kernels that each device uses: ``{"cpu": Backend(kernels, reason), "cuda": ...}``."""
    return dict(_loaded)
