"""`benchmarks` is no installed package: its folder comes last, so that the rest is what is installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
