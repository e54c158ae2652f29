"""One operator, compared with earlier runs: `pytest benchmarks -k psf_reuse_`.

pytest-benchmark picks the cases (-k), times only the native kernel and compares it with earlier runs
(--benchmark-compare). Each test's extra_info holds the ratios to the columns of cases.py, which
take turns with it. `python -m benchmarks.operators` keeps those of all cases.
"""

import pytest
import torch

import ausam_ext

from .case import measure
from .cases import CASES

DEVICES = [name for name in ("cpu", "cuda") if name == "cpu" or torch.cuda.is_available()]


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    backend = ausam_ext.backends()[request.param]
    if backend.kernels != "compiled":
        pytest.skip(f"no compiled kernels to time: {backend.reason}")
    return request.param


@pytest.mark.filterwarnings("default")  # torch.compile warns
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(benchmark, case, device, request):
    seconds = 3 * float(request.config.getoption("benchmark_max_time"))  # 1 by default
    benchmark.group = case.what
    benchmark.extra_info.update(measure(case, device, seconds=seconds))
    native = case.columns(device, rivals=False)["native"]
    benchmark(native if device == "cpu" else lambda: (native(), torch.cuda.synchronize()))
