"""Which kernels are live, and why others are not."""

import os
from importlib import import_module
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
    return Backend("reference", "this version of ausam_ext has no CUDA kernels")


def backends() -> dict[str, Backend]:
    """The kernels that serve each device: ``{"cpu": Backend(kernels, reason), "cuda": ...}``."""
    return dict(_loaded)
