"""Installs a wheel in fresh environments and runs it: try_wheel.py WHEEL PYTHON,... TORCH,...

Prints a row for each Python and torch. An environment takes 5 GB, and is deleted before the next is made.
"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from environments import check, run


def try_wheel(wheel, python, torch):
    """The versions, and what the training and `python -m ausam_ext` printed."""
    with TemporaryDirectory(prefix="try-wheel-") as folder:
        run(python, "-m", "venv", folder, cwd="/")
        own = Path(folder, "bin", "python")
        run(own, "-m", "pip", "install", torch, cwd=folder)
        run(own, "-m", "pip", "install", "--no-deps", wheel, cwd=folder)
        version = run(own, "-c", "import platform; print(platform.python_version())", cwd=folder).strip()
        trained = run(own, Path(__file__).with_name("train.py"), cwd=folder).splitlines()[-1]
        report = re.findall(r"^(?:cpu|cuda): .*", run(own, "-m", "ausam_ext", cwd=folder), re.MULTILINE)
        return [version, check(own, folder)["torch"], trained, *report]


if __name__ == "__main__":
    wheel, pythons, torches = sys.argv[1:]
    print(f"{Path(wheel).name}: {Path(wheel).stat().st_size / 1000:.0f} kB")
    for python in pythons.split(","):
        for torch in torches.split(","):
            print(*try_wheel(Path(wheel).resolve(), python, torch), sep=" | ", flush=True)
