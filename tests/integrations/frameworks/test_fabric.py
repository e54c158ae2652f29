"""Lightning Fabric: SAM sees through its wrapper."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("compiled", ["not", "inside", "outside"])
def test_two_processes(tmp_path, compiled):
    """One's own perturbation of each process, arguments that differ, an overflow that the others hear of."""
    worker = Path(__file__).with_name("fabric_worker.py")
    subprocess.run(
        [sys.executable, str(worker), compiled],
        check=True,
        timeout=240,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
