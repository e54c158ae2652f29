"""docs/distributed.md: its code runs in two processes, and its script under torchrun."""

import re

from distributed import document
from distributed.processes import assert_passed, start, torchrun


def test_code_runs(tmp_path):
    assert_passed(start(document, 2, tmp_path), "check_code")


def test_the_script_runs_under_torchrun(tmp_path):
    script = re.search(r"```py\n(.*?)```", document.DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    torchrun(script.group(1), tmp_path)
