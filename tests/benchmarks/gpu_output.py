"""What `make gpu` left under --output."""

import json
import tarfile

MACHINE = {"gpu": "NVIDIA H200", "driver": "580.1", "torch": "2.11.0+cu130", "commit": "abc"}


class Left:
    """What a run left under --output."""

    def __init__(self, output):
        assert sorted(p.name for p in output.iterdir()) == ["gpu.tar.gz", "summary.md"]
        self.summary = (output / "summary.md").read_text()
        with tarfile.open(output / "gpu.tar.gz") as archive:
            self.files = {m.name: archive.extractfile(m).read().decode() for m in archive.getmembers()}
        assert self.files["summary.md"] == self.summary
        run = json.loads(self.files["run.json"])
        assert run["machine"] == MACHINE
        self.stages = {o["stage"]: o for o in run["stages"]}

    def why(self, stage):
        return self.stages[stage]["why"]

    def rows(self):
        suites = json.loads(self.files["results/nvidia-h200.json"])
        return [row["what"] for row in suites["operators"]["rows"]]
