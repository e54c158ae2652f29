"""The operators' tests on emulated CUDA kernels that were built otherwise: with AddressSanitizer and
UndefinedBehaviorSanitizer, and with every multiplication and addition fused that a kernel leaves to nvcc."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import OPERATOR_TESTS
from emulation.build import sanitized_environment


@pytest.mark.sanitize
@pytest.mark.parametrize("variant", ["asan", "contracted"])
def test_operators_pass(variant):
    environment = sanitized_environment() if variant == "asan" else dict(os.environ)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-k",
            "cuda-emulated",
            *(f"{t}.py" for t in sorted(OPERATOR_TESTS)),
        ],
        cwd=Path(__file__).parent,
        env={**environment, "AUSAM_EMULATION": variant},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    print(run.stdout[-200:])
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert " passed" in run.stdout and "failed" not in run.stdout
