"""`python -m benchmarks.operators.gate`: fails if a kernel lost a quarter of its lead over the reference.

Both are timed in turn, in one thread, and only the ratio within a round counts, so that the recorded ratios
hold on a busy machine of few cores too. ``--record`` writes them anew; committed is for each case the lowest
of several runs, on an AMD and an Intel processor. (Of sampling: four fifths of an AMD's, until an Intel's is
known.)
"""

import argparse
import ctypes
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

import ausam_ext

from ..harness import RESULTS, compare
from .case import Case
from .cases import CASES

RECORDED = RESULTS / "gate.json"
SHARE = 0.75  # of the recorded ratio that must be reached


def ratio(case: Case, seconds: float) -> float:
    """How many times faster the native kernel is than the eager reference, as a median over rounds."""
    samples = compare(case.columns(rivals=False), rounds=200, seconds=seconds)
    return statistics.median(
        eager / native for native, eager in zip(samples["native"], samples["eager"], strict=True)
    )


def keep_freed_memory() -> None:
    """Has glibc keep what is freed: else half of the reference's time can be the system's, for new pages."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, at its largest


def failures(cases: Sequence[Case], recorded: dict[str, float], seconds: float = 2.0) -> list[str]:
    """A line for each case that stays below its share of the recorded ratio, also when timed for longer."""
    lines = []
    for case in cases:
        least = SHARE * recorded[str(case)]
        now = ratio(case, seconds)
        if again := now < least:
            now = max(now, ratio(case, 3 * seconds))
        line = f"{case}: {now:.2f}x eager, at least {least:.2f}" + (", second try" if again else "")
        print(line, flush=True)
        if now < least:
            lines.append(line)
    return lines


def main(arguments: Sequence[str] | None = None, path: Path = RECORDED) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators.gate", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the ratios instead of holding them")
    record = parser.parse_args(arguments).record
    backend = ausam_ext.backends()["cpu"]
    if backend.kernels != "compiled":
        parser.exit(2, f"no compiled kernels to time: {backend.reason}\n")
    torch.set_num_threads(1)
    keep_freed_memory()
    gated = [case for case in CASES if case.gated]
    if record:
        ratios = {str(case): float(f"{ratio(case, 6.0):.3g}") for case in gated}
        path.write_text(json.dumps(ratios, indent=1) + "\n", encoding="utf-8")
    elif lost := failures(gated, json.loads(path.read_text(encoding="utf-8"))):
        parser.exit(
            1, "\n".join(["slower against eager than a quarter below the recorded ratio:", *lost, ""])
        )


if __name__ == "__main__":
    main()
