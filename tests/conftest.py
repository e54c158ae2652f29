"""Backends: every test that takes `backend` runs on the compiled kernels and on the reference kernels."""

import socket

import pytest
import torch
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


@pytest.fixture(params=["reference"] if _FORCED else ["compiled", "reference"])
def backend(request):
    if request.param == _LIVE.kernels:
        yield request.param
    elif request.param == "reference":
        with _DefaultKernels():
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
