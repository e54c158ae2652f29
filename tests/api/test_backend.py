"""Which kernels are used, and that the package says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode

import ausam_ext
from ausam_ext import backend, backends
from ausam_ext.ops.registration import STAMP

REFERENCE = {**os.environ, "AUSAM_EXT_BACKEND": "reference"}


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT / "tests",
        **options,
    )


def copy_of_the_package(folder, *, kernels):
    """How a process is to be started that imports a copy; it has the package's own `_C` or none."""
    source, copy = Path(ausam_ext.__file__).parent, folder / "ausam_ext"
    shutil.copytree(source, copy, ignore=lambda path, names: [n for n in names if n.startswith("_C")])
    if kernels:
        from ausam_ext import _C

        shutil.copy(_C.__file__, copy)
    own = {k: v for k, v in os.environ.items() if k != "AUSAM_EXT_BACKEND"}
    return {**own, "PYTHONPATH": str(folder)}


@pytest.mark.parametrize("on", ["cpu", "cuda"])
def test_kernels_are_registered_unless_forced_otherwise(on):
    compiled, key = backends()[on].kernels == "compiled", on.upper()
    for name in ("dlp", "adlp_update_", "subset_sample", "adlp_sample", "sliced_variance", "permute"):
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
            f"ops/test_{m}.py"
            for m in ("sampling", "statistics", "tensor_lists", "operator_contract", "bad_input")
        ),
        env=REFERENCE,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout and "failed" not in run.stdout


def test_a_device_without_kernels_falls_through_to_the_reference():
    """The meta device in its place: the fake kernel answers there, and shapes come out right."""
    scores, noise = torch.empty(3, 8, device="meta"), torch.empty(3, 8, device="meta")
    assert ausam_ext.ops.subset_sample(scores, 2, noise=noise).shape == (3, 2)


def test_module_prints_what_a_bug_report_needs():
    out = python("-m", "ausam_ext").stdout
    assert f"ausam_ext {ausam_ext.__version__}" in out and torch.__version__ in out
    assert f"cpu: {backends()['cpu'].kernels} kernels" in out and "cuda: " in out
    assert ("no GPU" in out) == (torch.cuda.device_count() == 0)
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
    (tmp_path / "_C_cuda.so").write_text(STAMP)
    found = load_cuda(monkeypatch, tmp_path, built, driver)
    assert found.kernels == kernels
    assert kernels == "compiled" or f"with nvcc of CUDA {driver[0]}.{driver[1]} reinstall" in found.reason


def load_cuda(monkeypatch, folder, built, driver):
    """With the libraries of `folder`, on a machine of that driver."""
    build = SimpleNamespace(built_with_cuda=built, no_cuda="no nvcc", __file__=str(folder / "_C.so"))
    monkeypatch.setattr(backend, "import_module", lambda *_: build)
    monkeypatch.setitem(backend._loaded, "cpu", backend.Backend("compiled", ""))
    monkeypatch.setattr(backend, "_cuda_of_driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda *_: None)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    return backend._load_cuda(STAMP)


def test_cuda_kernels_are_looked_for_beside_those_of_the_cpu(monkeypatch, tmp_path):
    """Which are not beside the modules where the package is imported from a clone."""
    assert "without CUDA kernels (no nvcc)" in load_cuda(monkeypatch, tmp_path, "13.0", None).reason
    (tmp_path / "_C_cuda.so").write_text("the stamp of another version")
    found = load_cuda(monkeypatch, tmp_path, "13.0", None)
    assert found.kernels == "reference" and "_C_cuda.so was built for another version" in found.reason
    (tmp_path / "_C_cuda.so").write_text(STAMP)
    assert load_cuda(monkeypatch, tmp_path, "13.0", None) == ("compiled", "")


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


FIRST_USE = """
import sys, warnings, torch, ausam_ext
from torch._subclasses.fake_tensor import FakeTensorMode
from ausam_ext import ops

x = torch.ones(3)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    ops.dlp(x.to("meta"), x.to("meta"))
    ops.restore_([], [])
    with FakeTensorMode() as mode:
        ops.dlp(mode.from_tensor(x), mode.from_tensor(x))
    def compiler(graph, _):
        print("traced:", *(w.message for w in said if "ausam_ext" in str(w.message)))
        return graph.forward
    torch.compile(ops.dlp, backend=compiler, fullgraph=True)(x, x)
    ops.dlp(x, x)
    ops.restore_([x], [x.clone()])
print("said:", *(w.message for w in said if "ausam_ext" in str(w.message)), sep="\\n")
"""


def test_the_first_use_says_why_the_reference_is_used(tmp_path):
    """Once, and neither when the package is imported nor of tensors without data."""
    quiet = "error:ausam_ext:UserWarning"
    run = python("-W", quiet, "-c", FIRST_USE, env=copy_of_the_package(tmp_path, kernels=False))
    before, _, said = run.stdout.partition("said:\n")
    assert before == "traced:\n", run.stdout + run.stderr
    assert said.count("ausam_ext runs on its slower reference") == 1
    assert said.startswith("ausam_ext runs on its slower reference on cpu: there are no compiled kernels")
    assert "apt install g++ python3-dev" in said and "reinstall ausam_ext" in said
    assert "CUDA" not in said


def test_each_device_says_its_own_reason_once(monkeypatch):
    reasons = {d: backend.Backend("reference", f"no kernels of {d}") for d in ("cpu", "cuda")}
    monkeypatch.setattr(backend, "_loaded", reasons)
    monkeypatch.setattr(backend, "_unsaid", {"cpu", "cuda"})
    with FakeTensorMode():
        on_gpu = torch.empty(2, device="cuda")
    for device, tensors in {"cuda": [on_gpu], "cpu": torch.ones(2)}.items():
        with pytest.warns(UserWarning, match=f"reference on {device}: no kernels of {device}$"):
            backend.warn_of_reference(tensors)
        backend.warn_of_reference(tensors)  # warnings are errors


@pytest.mark.parametrize("place", ["beside the modules", "where pip installed them"])
def test_kernels_of_another_version_are_left_alone(tmp_path, place):
    """They would read the arguments of one schema as those of another."""
    in_place = place == "beside the modules"
    environment = copy_of_the_package(tmp_path, kernels=in_place)
    if not in_place:
        from ausam_ext import _C

        (tmp_path / "csrc").mkdir()  # a clone
        environment["PYTHONPATH"] += os.pathsep + str(Path(_C.__file__).parents[1])
    assert "cpu: compiled kernels" in python("-m", "ausam_ext", env=environment).stdout
    library = tmp_path / "ausam_ext" / "ops" / "registration.py"
    text = library.read_text()
    assert "bool adaptive=False" in text
    library.write_text(text.replace("bool adaptive=False", "bool adaptive=True"))
    run = python("-m", "ausam_ext", env=environment)
    assert f"was built for another version of ausam_ext than {tmp_path}" in run.stdout, run.stderr
    assert ("delete it and reinstall ausam_ext" in run.stdout) == in_place
    assert "reinstall ausam_ext" in run.stdout and "cpu: reference kernels" in run.stdout
    registered = "torch._C._dispatch_has_kernel_for_dispatch_key('ausam_ext::perturb_', 'CPU')"
    used = python("-c", f"import torch, ausam_ext; print({registered})", env=environment)
    assert used.stdout == "False\n", used.stderr
