"""Backends: every test that takes `backend` runs on the compiled and on the reference kernels, those of the
operators on the CUDA kernels too."""

import os
import socket

import pytest
import torch
from emulation.build import build
from emulation.library import Library
from emulation.mode import EmulatedKernels
from hypothesis import HealthCheck, settings
from torch.utils._python_dispatch import TorchDispatchMode

import ausam_ext

settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)
settings.register_profile(
    "long", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("quick")  # pytest --hypothesis-profile=long for the other


class _DefaultKernels(TorchDispatchMode):
    """Sends the operators to their default kernels, as the dispatcher does where none is compiled."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "ausam_ext":
            return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        return func(*args, **kwargs)


_LIVE = ausam_ext.backends()["cpu"]
_FORCED = "AUSAM_EXT_BACKEND" in _LIVE.reason  # a run on the reference alone: test_backend.py starts one
OPERATOR_TESTS = {
    "test_sampling",
    "test_statistics",
    "test_tensor_lists",
    "test_operator_contract",
    "test_bad_input",
}


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        names = ["reference"] if _FORCED else ["compiled", "reference"]
        if not _FORCED and metafunc.module.__name__ in OPERATOR_TESTS:
            names.append("cuda-emulated")
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture(scope="session")
def emulated(request):
    # "races" also finds what no schedule shows; test_sanitized.py asks for the other variants.
    variant = os.environ.get("AUSAM_EMULATION", "races")
    return Library(build(request.config.cache.mkdir("emulation"), variant))


@pytest.fixture
def backend(request):
    """Which kernels serve: the compiled ones, the reference, or the CUDA kernels as emulated on the host."""
    if request.param == _LIVE.kernels:
        yield request.param
    elif request.param == "reference":
        with _DefaultKernels():
            yield request.param
    elif request.param == "cuda-emulated":
        with EmulatedKernels(request.getfixturevalue("emulated")):
            yield request.param
    else:
        pytest.fail(f"the compiled kernels are not live: {_LIVE.reason}")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Sets the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
