"""``python -m benchmarks.demo``: trains, prints tables, and writes them with a picture and the numbers."""

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

import ausam_ext

EXTRA = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm"}  # with numpy and Pillow
OUTPUT = Path("demo-results")


def parser(methods: Sequence[str]) -> argparse.ArgumentParser:
    def positive(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
        return int(text)

    def device(text: str) -> torch.device:
        try:
            torch.zeros((), device=text).item()
            return torch.device(text)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise argparse.ArgumentTypeError(f"cannot compute on {text!r}: {reason}") from None

    p = argparse.ArgumentParser(
        prog="python -m benchmarks.demo",
        description="Trains a small network on handwritten digits, with a quarter of the labels wrong and "
        "with rare classes, with each method and seed; reports accuracy on clean test images, and cost.",
    )
    p.add_argument(
        "--seeds", type=positive, default=5, help="repetitions, each with other weights and data (default: 5)"
    )
    p.add_argument(
        "--epochs", type=positive, help="epochs of each training (default: 20, and 40 with rare classes)"
    )
    p.add_argument(
        "--methods",
        nargs="+",
        choices=methods,
        default=list(methods),
        metavar="METHOD",
        help=f"any of {', '.join(methods)}; without SAM nothing is compared with it (default: all)",
    )
    p.add_argument(
        "--device", type=device, default="cpu", help="where to train, such as cpu or cuda (default: cpu)"
    )
    p.add_argument(
        "--threads",
        type=positive,
        default=1,
        help="CPU threads; more gain little on so small a network and let other programs disturb the times "
        "(default: 1)",
    )
    p.add_argument("--output", type=Path, default=OUTPUT, help=f"folder for the results (default: {OUTPUT})")
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    if missing := [name for module, name in EXTRA.items() if find_spec(module) is None]:
        print(f'the demo needs {", ".join(missing)}: pip install ".[demo]"', file=sys.stderr)
        raise SystemExit(2)
    from . import compare, figure, report, rows

    p = parser(list(rows.METHODS))
    options = p.parse_args(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        p.error(f"argument --output: cannot make the folder: {error}")
    torch.set_num_threads(options.threads)

    methods = list(dict.fromkeys(options.methods))
    runs = compare.compare(methods, options.seeds, options.epochs, options.device)
    configuration = {
        "seeds": options.seeds,
        "device": str(options.device),
        "threads": options.threads,
        "ausam_ext": ausam_ext.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    jobs = [
        rows.job(method, data, options.epochs or data.epochs, 0) for data in rows.DATA for method in methods
    ]
    text = report.text(runs)
    print(f"\n{text}")
    (options.output / "tables.md").write_text(text, encoding="utf-8")
    report.write(options.output / "demo.json", configuration, jobs, runs)
    (options.output / "demo.png").write_bytes(figure.draw(runs))
    print(f"Written to {options.output}: tables.md, demo.json, demo.png")


if __name__ == "__main__":
    main()
