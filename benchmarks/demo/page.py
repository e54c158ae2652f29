"""``python -m benchmarks.demo.page``: fills README.md and docs/demo.md from results/demo.json."""

from pathlib import Path
from statistics import mean

from ..data import digits
from ..markdown import filled
from . import report

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/demo.json"
PAGES = (ROOT / "README.md", ROOT / "docs/demo.md")
BOTH = "AUSAM-probability+vSAM"


def blocks() -> dict[str, str]:
    """What is between the pages' markers, by name."""
    runs = report.read(RESULTS)
    group = report.grouped(runs)[digits.WRONG]

    def accuracy(method: str) -> str:
        return f"{mean(run.accuracy for run in group[method]):.1f} %"

    def cost(method: str) -> str:
        return f"{report.samples_of_sam(group[method], group):.2f}"

    speeds = report.sam_percent(group)

    def time(method: str) -> str:
        return f"{100 / speeds[method]:.2f} of the time"

    gain = f"{mean(report.differences(group['SAM'], group['SGD'])):+.1f}"
    return {
        "numbers": (
            "Handwritten digits, a quarter of the training labels wrong, five seeds: on clean test images "
            f"SGD is right in {accuracy('SGD')}, **SAM in {accuracy('SAM')} ({gain} points). vSAM keeps that "
            f"with {cost('vSAM')} of SAM's samples** ({accuracy('vSAM')}; {time('vSAM')}), **both methods "
            f"together with {cost(BOTH)}** ({accuracy(BOTH)}; {time(BOTH)}; AUSAM scores probabilities). SGD "
            f"has {cost('SGD')} ({time('SGD')}). Samples: through forward and backward. Times: of a tiny "
            "network. `make demo` repeats it; [what it shows, and what not](docs/demo.md).\n"
        ),
        "tables": f"\n{report.text(runs)}\n",
    }


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), blocks()), encoding="utf-8")


if __name__ == "__main__":
    main()
