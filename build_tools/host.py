"""What this machine has to build with: a compiler, Python's headers, torch and ninja."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import setuptools  # noqa: F401  brings distutils

TORCH = "torch>=2.11"  # the first release with everything that csrc/ uses of the stable ABI

# Where the interpreter itself finds torch: pip hides that from an isolated build.
LOOK = """
import json, os, sys
from importlib.util import find_spec
sys.path = [folder for folder in sys.path if folder]
print(json.dumps([*sys.path, os.path.dirname(os.path.dirname(find_spec("torch").origin))]))
"""


def lacks_compiler() -> str | None:
    """What the machine lacks to compile C++ for Python, with the way to get it."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if sys.platform == "win32":
        if not _has_msvc():
            return "no Visual C++ was found: install the Visual Studio Build Tools with C++"
    elif shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}) was found: install one, such as Debian's g++, or set CXX"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"Python's headers ({header}) were not found: install them, such as Debian's python3-dev"
    return None


def _has_msvc() -> bool:
    """setuptools finds it without the PATH."""
    from distutils.ccompiler import new_compiler
    from distutils.errors import DistutilsPlatformError

    try:
        new_compiler(compiler="msvc").initialize()
    except DistutilsPlatformError:
        return False
    return True


def lacks_packages() -> list[str]:
    """Requirements of the build that are not installed; finds torch and ninja if they are."""
    return [name for name, found in ((TORCH, find_torch()), ("ninja", _find_ninja())) if not found]


def find_torch() -> bool:
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
    """Puts it on the PATH: it is not there if the environment is not activated."""
    if shutil.which("ninja") is None and find_spec("ninja"):
        import ninja

        os.environ["PATH"] += os.pathsep + ninja.BIN_DIR
    return shutil.which("ninja") is not None
