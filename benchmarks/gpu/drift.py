"""One row at the beginning and at the end of the timings: how far the machine has drifted between them."""

import sys
from functools import partial

from .. import parts
from ..harness import Row
from ..operators.case import measure
from ..operators.cases import CASES

CASE = next(case for case in CASES if str(case) == "psf_capture_, ResNet-50")


def row(when: str, device: str) -> list[Row]:
    made = measure(CASE, device, seconds=1.0)
    return [{**made, "suite": "drift", "size": f"{CASE.size}, at the {when}", "target": None}]


if __name__ == "__main__":
    when = sys.argv.pop(1)
    parts.main("gpu.drift", lambda device, brief: {when: partial(row, when, device)})
