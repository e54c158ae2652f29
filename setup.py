"""Builds ausam_ext, and is its own PEP 517 backend (see pyproject.toml).

`pip install .` compiles against the torch that is installed where pip installs to, so that no flag is
needed; only where there is none does the build ask for one.
"""

import os
import shutil
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

from setuptools import Extension, setup
from setuptools.build_meta import *  # noqa: F403  the hooks that pip calls
from setuptools.build_meta import get_requires_for_build_wheel as _requires

TORCH = "torch>=2.11"  # the first release with everything that csrc/ uses of the stable ABI
TARGET = "0x020b000000000000"  # the same as TORCH_TARGET_VERSION: the library runs from there on


def _recent(version: str) -> bool:
    return tuple(int(part) for part in version.split(".")[:2]) >= (2, 11)


def _find_torch() -> bool:
    """Makes a recent torch of the target environment importable from an isolated build."""
    site = sysconfig.get_path("purelib")
    installed = distributions(name="torch", path=[site])
    if site not in sys.path and any(_recent(torch.version) for torch in installed):
        sys.path.append(site)  # last: what the build itself asked for goes first
    try:
        import torch
    except ImportError:
        return False
    return _recent(torch.__version__)


def _missing_toolkit() -> str | None:
    """What the machine lacks to compile, with the way to get it."""
    compiler = os.environ.get("CXX", "c++" if sys.platform != "win32" else "cl").split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}) was found: install one, such as Debian's g++, or set CXX"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"Python's headers ({header}) were not found: install them, such as Debian's python3-dev"
    return None


def get_requires_for_build_wheel(config_settings=None):
    return [*_requires(config_settings), *([] if _missing_toolkit() or _find_torch() else [TORCH])]


get_requires_for_build_editable = get_requires_for_build_wheel


def _extensions():
    if missing := _missing_toolkit():
        print(f"ausam_ext: {missing}. Installing without compiled kernels.", file=sys.stderr)
        return {}
    if not _find_torch():
        if {"bdist_wheel", "editable_wheel"} & set(sys.argv):
            sys.exit(f"ausam_ext: the build needs {TORCH}; --no-build-isolation expects it to be installed")
        return {}  # an sdist, or metadata: nothing to compile
    import pybind11
    from torch.utils.cpp_extension import include_paths, library_paths

    from setup_cuda import Build

    msvc = sys.platform == "win32"
    kernels = Extension(
        "ausam_ext._C",
        sorted(["csrc/module.cpp", *map(str, Path("csrc/cpu").glob("*.cpp"))]),
        depends=sorted(map(str, Path("csrc").rglob("*.h"))),
        include_dirs=[pybind11.get_include(), *include_paths()],
        library_dirs=library_paths(),
        libraries=["c10", "torch_cpu"],
        define_macros=[("TORCH_TARGET_VERSION", TARGET)],
        # No fused multiply-add: the same bits on every processor (see reference.py).
        extra_compile_args=["/O2"]
        if msvc
        else [
            *("-O3", "-ffp-contract=off", "-fno-wrapv", "-fno-math-errno"),
            *("-fvisibility=hidden", "-g0", "-Wall"),
        ],
        language="c++",
    )
    cuda = Extension("ausam_ext._C_cuda", [])  # its sources and flags are in setup_cuda.py
    return {"ext_modules": [kernels, cuda], "cmdclass": {"build_ext": Build}}


if __name__ == "__main__":
    setup(
        license="Apache-2.0",  # not in pyproject.toml: old and new setuptools want it in two forms there
        packages=["ausam_ext", "ausam_ext.demo", "ausam_ext.integrations"],
        package_data={"ausam_ext": ["py.typed"]},
        **_extensions(),
    )
