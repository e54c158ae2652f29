"""``python -m ausam_ext.demo``: trains, prints a table, and writes it with a picture and the numbers."""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch

from .. import __version__
from .methods import METHODS

EXTRA = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm"}


def parser() -> argparse.ArgumentParser:
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
        prog="python -m ausam_ext.demo",
        description="Trains a small network on handwritten digits, a quarter of which have a wrong label, "
        "with each method and seed; reports accuracy on clean test images, and cost.",
        epilog="vSAM starts with 10 second passes in 50 steps. With the default, 1, so short a training "
        "ends before the rate has risen.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--seeds", type=positive, default=5, help="repetitions, each with other data and weights")
    p.add_argument("--epochs", type=positive, default=40, help="epochs of each training")
    p.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=argparse.SUPPRESS,
        metavar="METHOD",
        help=f"any of {', '.join(METHODS)}; without SAM nothing is compared with it (default: all)",
    )
    p.add_argument("--device", type=device, default="cpu", help="where to train, such as cpu or cuda")
    p.add_argument(
        "--threads",
        type=positive,
        default=1,
        help="CPU threads; more gain little on so small a network and let other programs disturb the times",
    )
    p.add_argument("--output", type=Path, default=Path("demo-results"), help="folder for the results")
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    p = parser()
    options = p.parse_args(arguments)
    if missing := [name for module, name in EXTRA.items() if find_spec(module) is None]:
        p.exit(2, f'the demo needs {", ".join(missing)}: pip install "ausam_ext[demo]"\n')
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        p.error(f"argument --output: cannot make the folder: {error}")
    torch.set_num_threads(options.threads)

    from . import data, figure, report, training

    methods = list(dict.fromkeys(getattr(options, "methods", METHODS)))
    runs = training.compare(methods, options.seeds, options.epochs, options.device)
    rows = report.summarize(runs)
    text = f"{report.table(rows)}\n{report.caption(options.seeds, options.epochs)}"
    configuration = {
        "seeds": options.seeds,
        "epochs": options.epochs,
        "device": str(options.device),
        "threads": options.threads,
        "train_size": data.TRAIN_SIZE,
        "label_noise": data.LABEL_NOISE,
        "batch_size": training.BATCH_SIZE,
        "learning_rate": training.LEARNING_RATE,
        "momentum": training.MOMENTUM,
        "weight_decay": training.WEIGHT_DECAY,
        "rho": training.RHO,
        "vsam_warmup_epochs": training.VSAM_WARMUP_EPOCHS,
        "methods": {method: asdict(METHODS[method]) for method in methods},
        "ausam_ext": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(f"\n{text}")
    (options.output / "table.md").write_text(text, encoding="utf-8")
    report.write_json(options.output / "results.json", configuration, rows, runs)
    figure.draw(options.output / "demo.png", rows, runs)
    print(f"Written to {options.output}: table.md, results.json, demo.png")


if __name__ == "__main__":
    main()
