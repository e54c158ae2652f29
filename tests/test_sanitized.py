"""The operators' tests on kernels that were built otherwise: CPU kernels and emulated CUDA kernels with
AddressSanitizer and UndefinedBehaviorSanitizer, and emulated ones with every multiplication and addition
fused that a kernel leaves to nvcc."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulation.build import CSRC, build_cpu, sanitized_environment
from helpers import OPERATOR_TESTS

pytestmark = pytest.mark.sanitize
HERE = Path(__file__).parent


def operators_pass(*options, **environment):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, *(f"{t}.py" for t in sorted(OPERATOR_TESTS))],
        cwd=HERE,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    print(run.stdout[-200:])
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert " passed" in run.stdout and "failed" not in run.stdout


@pytest.mark.parametrize("variant", ["asan", "contracted"])
def test_emulated_kernels(variant):
    environment = sanitized_environment() if variant == "asan" else {}
    operators_pass("-k", "cuda-emulated", **{**environment, "AUSAM_EMULATION": variant})


@pytest.fixture(scope="module")
def folder(request):
    return request.config.cache.mkdir("sanitized")


def test_cpu_kernels(folder):
    """All but the test that starts a compiler, which would run under the sanitizer."""
    library = build_cpu("ausam_cpu", [CSRC / "module.cpp", *sorted(CSRC.glob("cpu/*.cpp"))], folder)
    options = ("-p", "sanitized_kernels", "--backend=compiled", "-k", "not inductor")
    operators_pass(*options, **{**sanitized_environment(), "AUSAM_CPU_KERNELS": str(library)})


FAULT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
operator = getattr(torch.ops.ausam_faults, sys.argv[2])
operator(torch.zeros(40, dtype=torch.int32))
print("correct", flush=True)
operator(torch.ones(40, dtype=torch.int32))
print("unnoticed", flush=True)
"""


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("overrun_", "heap-buffer-overflow"),
        ("read_before_", "heap-buffer-overflow"),
        ("overflow_", "signed integer overflow"),
        ("misaligned_", "misaligned address"),
    ],
)
def test_mistakes_of_a_cpu_kernel_end_the_process(folder, operator, message):
    library = build_cpu("ausam_faults", [HERE / "sanitized" / "faults.cpp"], folder)
    run = subprocess.run(
        [sys.executable, "-c", FAULT, library, operator],
        env=sanitized_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout == "correct\n" and run.returncode != 0 and message in run.stderr, run.stderr[-3000:]
