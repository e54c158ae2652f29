"""docs/distributed.md: its code runs in two processes, and its script under torchrun."""

import os
import re
import subprocess
import sys

from distributed import document
from distributed.processes import assert_passed, start


def test_code_runs(tmp_path):
    assert_passed(start(document, 2, tmp_path), "check_code")


def test_the_script_runs_under_torchrun(tmp_path):
    script = re.search(r"```py\n(.*?)```", document.DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    # A process that ends right after its last reduction can abort: gloo's threads then still hold its tensors
    # (PyTorch pull request 179291, shown by plain DDP too). A second is enough for them to let go.
    (tmp_path / "train.py").write_text(script.group(1) + "import time\ntime.sleep(1)\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "--nproc-per-node", "2", "train.py"],
        cwd=tmp_path,
        env=environment,
        check=True,
        timeout=240,
    )
