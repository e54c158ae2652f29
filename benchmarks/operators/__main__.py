"""Every operator at every size, for benchmarks/results: `python -m benchmarks.operators`."""

from dataclasses import replace
from functools import partial

from .. import parts
from ..harness import Row
from .case import Case, measure
from .cases import CASES


def row(case: Case, device: str, seconds: float) -> list[Row]:
    return [measure(case, device, seconds=seconds)]


def cases(device: str, brief: bool) -> parts.Parts:
    """``brief``: what has a target comes first; ``torch.compile``, which takes seconds per case, last."""
    if not brief:
        return {str(case): partial(row, case, device, 3.0) for case in CASES}
    ordered = sorted(CASES, key=lambda case: not (case.target or case.on_cuda))
    first = {str(case): replace(case, compiled=False) for case in ordered}
    again = {f"{case}, compiled": case for case in ordered if case.compiled}
    return {name: partial(row, case, device, 0.3) for name, case in {**first, **again}.items()}


if __name__ == "__main__":
    parts.main("operators", cases)
