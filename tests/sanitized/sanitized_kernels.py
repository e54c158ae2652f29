"""`pytest -p sanitized.sanitized_kernels`: AUSAM_CPU_KERNELS names the library that takes the place of
ausam_ext._C."""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location

import torch  # noqa: F401  its libraries have to be there first

spec = spec_from_file_location("ausam_ext._C", os.environ["AUSAM_CPU_KERNELS"])
module = module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["ausam_ext._C"] = module


def pytest_sessionfinish():
    import ausam_ext

    assert ausam_ext.backends()["cpu"].kernels == "compiled"
    with open("/proc/self/maps") as maps:
        live = {line.split()[-1] for line in maps if "ausam_ext/_C" in line or "ausam_cpu" in line}
    assert live == {os.path.realpath(os.environ["AUSAM_CPU_KERNELS"])}, live
