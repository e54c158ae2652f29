"""Backends: every test that takes `backend` runs on the compiled and on the reference kernels, those of the
operators on the emulated CUDA kernels too. Tests that take `device` run on the CPU, and on a GPU where the
CUDA kernels are in use.

`pytest --backend=cuda -k cuda` runs all of them on a GPU, as `make gpu` does. With `--device=cpu` beside it
the CPU takes the GPU's place, to try the tests themselves.
"""

import os
import socket
import sys
from functools import cache

import pytest
import torch
from device.mode import DeviceKernels
from emulation.compiling import build
from emulation.library import Library
from emulation.mode import EmulatedKernels
from helpers import ROOT
from hypothesis import HealthCheck, settings
from torch.utils._python_dispatch import TorchDispatchMode

import ausam_ext

sys.path.append(str(ROOT))  # for `benchmarks`; last, so that ausam_ext is the installed package

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
_FORCED = "AUSAM_EXT_BACKEND" in _LIVE.reason  # a run on only the reference: test_backend.py starts one
EMULATED = {"cuda-emulated": "", "cuda-emulated-long-tables": "-long-tables"}  # and what they are built as
ON_DEVICE = ("cuda", "cuda-no-sync")
GPU = torch.cuda.is_available() and ausam_ext.backends()["cuda"].kernels == "compiled"


def pytest_addoption(parser):
    backends = ("compiled", "reference", *EMULATED, *ON_DEVICE)
    parser.addoption("--backend", choices=backends, help="run tests that take `backend` on only this one")
    parser.addoption("--device", choices=("cpu", "cuda"), help="where --backend=cuda runs")


def pytest_configure(config):
    if config.getoption("--backend") not in ON_DEVICE or config.getoption("--device") == "cpu":
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError(f"--backend=cuda: torch {torch.__version__} sees no NVIDIA GPU")
    if not GPU:
        raise pytest.UsageError(f"--backend=cuda: {ausam_ext.backends()['cuda'].reason}")


def pytest_generate_tests(metafunc):
    chosen, file = metafunc.config.getoption("--backend"), metafunc.definition.path
    if "backend" in metafunc.fixturenames:
        names = ["reference"] if _FORCED else ["compiled", "reference"]
        if not _FORCED and file.parent.name == "ops":
            names += list(EMULATED)[: 2 if file.stem == "test_tensor_lists" else 1]
        metafunc.parametrize("backend", [chosen] if chosen else names, indirect=True)
    if "device" in metafunc.fixturenames:
        devices = ["cpu", *(["cuda"] if GPU else [])]
        if chosen:
            devices = ["cuda"] if chosen in ON_DEVICE else ["cpu"]
        metafunc.parametrize("device", devices, indirect=True)


@pytest.fixture
def device(request):
    """The device of a test's tensors: "cpu" or "cuda"."""
    return request.config.getoption("--device") or request.param


@pytest.fixture(scope="session")
def emulated(request):
    # "races" also finds what no schedule shows; test_sanitized.py asks for the other variants.
    variant = os.environ.get("AUSAM_EMULATION", "races")
    folder = request.config.cache.mkdir("emulation")
    return cache(lambda suffix: Library(build(folder, variant + suffix)))


@pytest.fixture
def backend(request):
    """Which kernels are used: the compiled ones, the reference, the CUDA kernels as emulated on the host, or
    those of a GPU: with "cuda-no-sync", waiting for it is an error."""
    if request.param == _LIVE.kernels:
        yield request.param
    elif request.param == "reference":
        with _DefaultKernels():
            yield request.param
    elif request.param in EMULATED:
        with EmulatedKernels(request.getfixturevalue("emulated")(EMULATED[request.param])):
            yield request.param
    elif request.param in ON_DEVICE:
        device = request.config.getoption("--device") or "cuda"
        with DeviceKernels(device, synchronising=request.param == "cuda"):
            yield request.param
    else:
        pytest.fail(f"the compiled kernels are not in use: {_LIVE.reason}")


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


@pytest.fixture
def dynamo_unharmed():
    """For tests in which Dynamo traces backward(): that writes the source of a missing .grad into the one
    constant which it has for None, and makes it fail in what it compiles later outside this mode."""
    from torch._dynamo.variables import constant  # slow to import

    yield
    constant.CONSTANT_VARIABLE_NONE.source = None


@pytest.fixture(params=["float64", "bfloat16", "meta"])
def default(request):
    """A default that is not float32, or not the CPU."""

    def begin():
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, request.param))

    yield begin
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
