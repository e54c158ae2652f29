"""What is built, from what; how is in build_tools/.

ausam_ext           the Python modules
ausam_ext._C        the CPU kernels, from csrc/cpu
ausam_ext._C_cuda   the CUDA kernels, from csrc/cuda, if there is nvcc

Without a C++ compiler only the Python modules are installed.
"""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup

from build_tools import host
from build_tools.build_py import BuildPy

# Both libraries run with every torch from 2.11 and, but for builds without a GIL, every Python from 3.10 on.
TORCH_TARGET = "0x020b000000000000"
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")

# No fused multiply-add: the same bits on every processor (see reference.py). Unless told that nothing traps,
# gcc makes no vectors of a choice between floats.
GCC = ["-O3", "-ffp-contract=off", "-fno-wrapv", "-fno-math-errno", "-fno-trapping-math"]
GCC += ["-fvisibility=hidden", "-g0", "-Wall"]


def files(*patterns: str) -> list[str]:
    return sorted(str(path) for pattern in patterns for path in Path("csrc").glob(pattern))


def compiled() -> dict:
    """The libraries. Only for commands that compile: an sdist, or metadata, is made without torch."""
    if not {"bdist_wheel", "editable_wheel", "build", "build_ext", "develop", "install"} & set(sys.argv):
        return {}
    if lacking := host.lacks_compiler():
        if os.environ.get("FORCE_CUDA") == "1":
            sys.exit(f"ausam_ext: FORCE_CUDA=1 was set, and {lacking}")
        print(f"ausam_ext: {lacking}. Installing without compiled kernels.", file=sys.stderr)
        return {}
    if lacking := host.lacks_packages():
        install = " ".join(f"'{name}'" if name == host.TORCH else name for name in lacking)
        sys.exit(f"ausam_ext: the build needs {', '.join(lacking)}: pip install {install}")
    from torch.utils.cpp_extension import include_paths, library_paths

    from build_tools.build_ext import BuildExt

    cpu = Extension(
        "ausam_ext._C",
        files("module.cpp", "cpu/*.cpp"),
        depends=files("*.h", "cpu/*.h"),
        include_dirs=include_paths(),
        library_dirs=library_paths(),
        libraries=["c10", "torch_cpu"],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
        extra_compile_args=["/O2"] if sys.platform == "win32" else GCC,
        py_limited_api=STABLE_ABI,
        language="c++",
    )
    cuda = Extension(
        "ausam_ext._C_cuda",
        files("cuda/*.cu"),
        depends=files("*.h", "cuda/*.h", "cuda/*.cuh"),
        py_limited_api=STABLE_ABI,
    )
    return {
        "ext_modules": [cpu, cuda],
        "cmdclass": {"build_py": BuildPy, "build_ext": BuildExt},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE_ABI else {},
    }


setup(
    license="Apache-2.0",  # not in pyproject.toml: old and new setuptools want it in two forms there
    packages=find_packages(include=["ausam_ext", "ausam_ext.*"]),
    package_data={"ausam_ext": ["py.typed"]},
    **{"cmdclass": {"build_py": BuildPy}, **compiled()},
)
