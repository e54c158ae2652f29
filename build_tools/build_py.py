"""setuptools' build_py, which copies the Python modules."""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Starts afresh: an earlier build may have left modules and kernels that are gone now."""

    def run(self):
        built = Path(self.build_lib, "ausam_ext").resolve()
        if not self.editable_mode and built != Path("ausam_ext").resolve():
            shutil.rmtree(built, ignore_errors=True)
        super().run()
