"""The operators' tests on kernels that were built otherwise: CPU kernels and emulated CUDA kernels with
AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulation.compiling import CSRC, build_cpu, sanitized_environment
from helpers import ROOT

pytestmark = pytest.mark.sanitize


def start(*options, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", *options, "ops"],
        cwd=ROOT / "tests",
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(request):
    return request.config.cache.mkdir("sanitized")


@pytest.fixture(scope="module")
def runs(folder):
    """All at once: each takes minutes, of one processor."""
    emulated = ("-k", "cuda-emulated and not long-tables")
    library = build_cpu("ausam_cpu", [CSRC / "module.cpp", *sorted(CSRC.glob("cpu/*.cpp"))], folder)
    # Without the test that starts a compiler, which would run under the sanitizer.
    compiled = ("-p", "sanitized.sanitized_kernels", "--backend=compiled", "-k", "not inductor")
    started = {
        "emulated, sanitized": start(*emulated, **sanitized_environment(), AUSAM_EMULATION="asan"),
        "CPU, sanitized": start(*compiled, **sanitized_environment(), AUSAM_CPU_KERNELS=str(library)),
    }
    yield started
    for run in started.values():
        run.kill()
        run.communicate()


@pytest.mark.parametrize("kernels", ["emulated, sanitized", "CPU, sanitized"])
def test_operators_pass_on(runs, kernels):
    output, _ = runs[kernels].communicate(timeout=1200)
    print(output[-200:])
    assert runs[kernels].returncode == 0, output[-8000:]
    assert " passed" in output and "failed" not in output


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
    library = build_cpu("ausam_faults", [Path(__file__).with_name("faults.cpp")], folder)
    run = subprocess.run(
        [sys.executable, "-c", FAULT, library, operator],
        env=sanitized_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout == "correct\n" and run.returncode != 0 and message in run.stderr, run.stderr[-3000:]
