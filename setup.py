"""Builds ausam_ext, and is its own PEP 517 backend (see pyproject.toml).

`pip install .` compiles against the torch that is installed where pip installs to, so that no flag is
needed; only where there is none does the build ask for one.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

try:
    from setuptools import Extension, setup
    from setuptools.build_meta import *  # noqa: F403  the hooks that pip calls
    from setuptools.build_meta import get_requires_for_build_wheel as _requires
    from setuptools.command.build_py import build_py
except ImportError:
    sys.exit("ausam_ext: the build needs setuptools: pip install setuptools pybind11 ninja")

TORCH = "torch>=2.11"  # the first release with everything that csrc/ uses of the stable ABI
TARGET = "0x020b000000000000"  # the same as TORCH_TARGET_VERSION: the library runs from there on
COMPILING = {"bdist_wheel", "editable_wheel", "build", "build_ext", "develop", "install"}

# Where the interpreter itself finds torch: pip hides that from an isolated build.
LOOK = """
import json, os, sys
from importlib.util import find_spec
sys.path = [folder for folder in sys.path if folder]
print(json.dumps([*sys.path, os.path.dirname(os.path.dirname(find_spec("torch").origin))]))
"""


def _find_torch() -> bool:
    """Makes the torch of the target environment importable from an isolated build; whether it is recent."""
    if find_spec("torch") is None:
        usual = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
        look = subprocess.run([sys.executable, "-c", LOOK], env=usual, capture_output=True, text=True)
        if look.returncode:
            return False
        folders = json.loads(look.stdout.splitlines()[-1])
        sys.path += dict.fromkeys(f for f in folders if f not in sys.path)  # last: the build's own go first
    try:
        import torch
    except ImportError:
        return False
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 11)


def _find_ninja() -> bool:
    """Puts it on the PATH, where an environment that is not activated leaves it out."""
    if shutil.which("ninja") is None and find_spec("ninja"):
        import ninja

        os.environ["PATH"] += os.pathsep + ninja.BIN_DIR
    return shutil.which("ninja") is not None


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


class BuildPy(build_py):
    """Starts afresh: an earlier build may have left modules and kernels that are gone now."""

    def run(self):
        built = Path(self.build_lib, "ausam_ext").resolve()
        if not self.editable_mode and built != Path("ausam_ext").resolve():
            shutil.rmtree(built, ignore_errors=True)
        super().run()


def _build():
    """What setup() is to build besides the modules."""
    python_alone = {"cmdclass": {"build_py": BuildPy}}
    if not COMPILING & set(sys.argv):
        return python_alone  # an sdist, or metadata
    if missing := _missing_toolkit():
        if os.environ.get("FORCE_CUDA") == "1":
            sys.exit(f"ausam_ext: FORCE_CUDA=1 was set, and {missing}")
        print(f"ausam_ext: {missing}. Installing without compiled kernels.", file=sys.stderr)
        return python_alone
    found = {TORCH: _find_torch(), "pybind11": find_spec("pybind11"), "ninja": _find_ninja()}
    if missing := [name for name, there in found.items() if not there]:
        install = " ".join(f"'{name}'" if name == TORCH else name for name in missing)
        sys.exit(f"ausam_ext: the build needs {', '.join(missing)}: pip install {install}")
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
        # No fused multiply-add: the same bits on every processor (see reference.py). Unless told that nothing
        # traps, gcc makes no vectors of a choice between floats.
        extra_compile_args=["/O2"]
        if msvc
        else [
            *("-O3", "-ffp-contract=off", "-fno-wrapv", "-fno-math-errno", "-fno-trapping-math"),
            *("-fvisibility=hidden", "-g0", "-Wall"),
        ],
        language="c++",
    )
    cuda = Extension("ausam_ext._C_cuda", [])  # its sources and flags are in setup_cuda.py
    return {"ext_modules": [kernels, cuda], "cmdclass": {"build_py": BuildPy, "build_ext": Build}}


if __name__ == "__main__":
    setup(
        license="Apache-2.0",  # not in pyproject.toml: old and new setuptools want it in two forms there
        packages=["ausam_ext", "ausam_ext.baselines", "ausam_ext.integrations", "ausam_ext.ops"],
        package_data={"ausam_ext": ["py.typed"]},
        **_build(),
    )
