"""Runs commands as users do: in environments of their own, and with the source tree out of reach."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILT = (".git", ".venv", "build", "dist", "*.egg-info", "*.so", "__pycache__")


def run(*command, cwd, fails=False, **environment):
    """Returns what the command printed.

    Builds leave the CUDA kernels out, which take as long as the rest, unless FORCE_CUDA is given.
    """
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "AUSAM_EXT_BACKEND")}
    own["FORCE_CUDA"] = "0"
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**own, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert (done.returncode != 0) == fails, f"{command} ended with {done.returncode}:\n{done.stdout[-8000:]}"
    return done.stdout


def check(python, folder, kernels="compiled", **environment):
    """Runs check_installed.py; returns what it says about torch and the build."""
    script = Path(__file__).with_name("check_installed.py")
    output = run(python, script, folder, kernels, cwd=folder, **environment)
    return json.loads(output.splitlines()[-1])


def copy_tree(source, target):
    """The source tree as it is checked out: pip builds in the tree that it is given."""
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns(*BUILT))


def build_wheel(python, source, folder, **environment):
    """pip's own isolated build, against the torch that is installed beside `python`."""
    run(python, "-m", "pip", "wheel", "--no-deps", "-w", folder, source, cwd=folder, **environment)
    return next(folder.glob("*.whl"))


def unpack(wheel, folder):
    """Installs a wheel beside, not into, the environment of `sys.executable`."""
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, wheel, cwd=wheel.parent)
    return folder
