"""Which kernels serve, and that the package says so."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ausam_ext
from ausam_ext import backend, backends

HERE = Path(__file__).parent
REFERENCE = {**os.environ, "AUSAM_EXT_BACKEND": "reference"}


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=600, cwd=HERE, **options
    )


@pytest.mark.parametrize("on", ["cpu", "cuda"])
def test_kernels_are_registered_unless_forced_otherwise(on):
    compiled, key = backends()[on].kernels == "compiled", on.upper()
    for name in ("dlp", "adlp_update_", "subset_sample", "adlp_sample", "sliced_variance"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ausam_ext::{name}", key) == compiled
    for name in ("perturb_", "restore_", "psf_capture_", "psf_reuse_"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ausam_ext::{name}", key) == compiled


def test_operators_pass_on_the_reference_that_the_environment_variable_forces():
    """The real fall-through of the dispatcher, opcheck and torch.compile included, in its own process."""
    run = python(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(
            f"test_{m}.py"
            for m in ("sampling", "statistics", "tensor_lists", "operator_contract", "bad_input")
        ),
        env=REFERENCE,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout and "failed" not in run.stdout


def test_a_device_without_kernels_falls_through_to_the_reference():
    """The meta device stands for it: the fake kernel answers there, and shapes come out right."""
    scores, noise = torch.empty(3, 8, device="meta"), torch.empty(3, 8, device="meta")
    assert ausam_ext.ops.subset_sample(scores, 2, noise=noise).shape == (3, 2)


def test_module_prints_what_a_bug_report_needs():
    out = python("-m", "ausam_ext").stdout
    assert f"ausam_ext {ausam_ext.__version__}" in out and torch.__version__ in out
    assert f"cpu: {backends()['cpu'].kernels} kernels" in out and "cuda: " in out
    forced = python("-m", "ausam_ext", env=REFERENCE).stdout
    assert "cpu: reference kernels (AUSAM_EXT_BACKEND=reference is set)" in forced


def test_a_misspelt_choice_is_refused():
    run = python("-c", "import ausam_ext", env={**os.environ, "AUSAM_EXT_BACKEND": "cpu"})
    assert (
        run.returncode != 0 and "AUSAM_EXT_BACKEND: expected 'reference' or nothing, got 'cpu'" in run.stderr
    )


def test_build_facts():
    from ausam_ext import _C

    assert _C.target_torch == "2.11" and _C.compiler and _C.built_with_torch[0].isdigit()
    assert bool(_C.built_with_cuda) == bool(_C.cuda_archs) != bool(_C.no_cuda)


@pytest.mark.parametrize(
    ("built", "driver", "kernels"),
    [
        ("13.0", (12, 9), "reference"),
        ("13.2", (13, 0), "compiled"),
        ("12.8", (12, 0), "reference"),  # no kernels with long arguments
        ("12.8", (12, 1), "compiled"),
        ("12.0", (12, 0), "compiled"),
        ("12.8", (13, 0), "compiled"),
        ("13.0", None, "compiled"),
    ],
)
def test_which_drivers_run_what_a_toolkit_built(monkeypatch, tmp_path, built, driver, kernels):
    library = tmp_path / "_C_cuda.so"
    library.touch()
    monkeypatch.setattr(backend, "__file__", str(tmp_path / "backend.py"))
    monkeypatch.setattr(backend, "import_module", lambda *_: SimpleNamespace(built_with_cuda=built))
    monkeypatch.setattr(backend, "_cuda_of_driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda *_: None)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    found = backend._load_cuda()
    assert found.kernels == kernels
    assert kernels == "compiled" or f"with nvcc of CUDA {driver[0]}.{driver[1]} reinstall" in found.reason


def test_a_driver_older_than_the_toolkit_leaves_the_reference(tmp_path):
    """As cudaErrorInsufficientDriver at the first launch it would come too late."""
    from ausam_ext import _C

    source, driver = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
    source.write_text("int cuDriverGetVersion(int* version) { *version = 11080; return 0; }\n")
    subprocess.run([os.environ.get("CXX", "c++"), "-x", "c", "-shared", "-o", driver, source], check=True)
    run = python("-m", "ausam_ext", env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
    if torch.version.cuda and _C.built_with_cuda:
        assert (
            "the driver runs CUDA 11.8: update the driver, or with nvcc of CUDA 11.8 reinstall" in run.stdout
        )
    assert "cuda: reference kernels" in run.stdout, run.stderr
