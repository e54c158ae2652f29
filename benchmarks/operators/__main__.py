"""Every operator at every size, for benchmarks/results: `python -m benchmarks.operators`."""

from functools import partial

from .. import parts
from ..harness import Row
from .cases import CASES, Case, measure


def row(case: Case, device: str, seconds: float) -> list[Row]:
    return [measure(case, device, seconds=seconds)]


def cases(device: str, brief: bool) -> parts.Parts:
    return {str(case): partial(row, case, device, 0.3 if brief else 3.0) for case in CASES}


if __name__ == "__main__":
    parts.main("operators", cases)
