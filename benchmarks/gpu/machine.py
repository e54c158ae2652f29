"""What the figures depend on: the GPU, its driver and clocks, torch, nvcc, and the sources."""

import hashlib
import json
import subprocess
import sys
from typing import Any

from .stages import ROOT

QUERY = {
    "driver": "driver_version",
    "SM clock": "clocks.sm",
    "memory clock": "clocks.mem",
    "most of the SM clock": "clocks.max.sm",
    "power": "power.draw",
    "power limit": "power.limit",
    "temperature": "temperature.gpu",
}
CHANGING = ("SM clock", "memory clock", "power", "temperature")

PROPERTIES = """
import json, sys, torch
if torch.cuda.is_available():
    gpu = torch.cuda.get_device_properties(0)
    print(json.dumps({
        "gpu": gpu.name, "GPUs": torch.cuda.device_count(), "memory": gpu.total_memory,
        "compute capability": f"{gpu.major}.{gpu.minor}", "multiprocessors": gpu.multi_processor_count,
        "L2 cache": gpu.L2_cache_size, "torch": torch.__version__, "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "python": sys.version.split()[0],
    }))
"""


def output(*command: str) -> str:
    """What a command prints; nothing if it fails, and never an error."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def facts() -> dict[str, Any]:
    """The machine; empty without an NVIDIA GPU. In another process, so that this one holds no part of it."""
    found = json.loads(output(sys.executable, "-c", PROPERTIES) or "{}")
    if not found:
        return {}
    nvcc = output("nvcc", "--version") or output("/usr/local/cuda/bin/nvcc", "--version")
    return {**found, **now(*QUERY), "nvcc": nvcc.splitlines()[-1] if nvcc else "not found", **sources()}


def now(*names: str) -> dict[str, str]:
    """What nvidia-smi says of the first GPU, by names of QUERY."""
    if not names:
        return {}
    query = ",".join(QUERY[name] for name in names)
    said = output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").splitlines()
    values = [value.strip() for value in said[0].split(",")] if said else []
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


def sources() -> dict[str, str]:
    """The commit, and a digest of what is built and run: a copy of the tree may have no history."""
    digest = hashlib.sha256()
    for folder in ("csrc", "ausam_ext", "benchmarks"):
        for path in sorted(
            p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".h", ".cpp", ".cu", ".cuh")
        ):
            digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    commit = output("git", "rev-parse", "HEAD")
    changed = " with changes" if output("git", "status", "--porcelain", "--untracked-files=no") else ""
    return {"commit": f"{commit}{changed}" if commit else "unknown", "sources": digest.hexdigest()[:16]}
