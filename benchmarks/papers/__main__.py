"""``python -m benchmarks.papers``: lists both papers' tables, trains their rows, shows what came out."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from .. import data as datasets
from .. import runs
from ..job import Job
from . import published, show, speed
from .jobs import FASHION, TABLES, jobs, rows_of

ON_THE_DEVICE = (
    "The images are on the device and are augmented there. The papers load and augment them on the CPU, "
    "which adds the same to each method's steps: so their SAM% are nearer to 100 than those here."
)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.papers", description=__doc__.split(":", 1)[1])
    commands = p.add_subparsers(dest="command", required=True)
    listed = commands.add_parser("list", help="every table, and for each of its rows what it needs")
    run = commands.add_parser("run", help="train what is missing of a table; goes on where it was stopped")
    shown = commands.add_parser("show", help="what was trained of a table, beside what the paper prints")
    for each in (run, shown):
        each.add_argument("table", choices=TABLES)
        each.add_argument("--methods", nargs="+", default=[], help="these rows only")
        each.add_argument("--networks", nargs="+", default=[])
        each.add_argument("--datasets", nargs="+", default=[])
        each.add_argument("--epochs", type=int, help="of each run; the paper's 200 if not given")
        each.add_argument("--seeds", type=int, default=3)
        each.add_argument("--made", action="store_true", help="small made files and networks, to try it out")
        each.add_argument("--whole", action="store_true", help="fashion: all 60,000 training images")
        each.add_argument("--out", type=Path, default=Path("papers-results"), help="where the runs are kept")
    for each in (listed, run):
        each.add_argument("--data", type=Path, default=Path("data"), help="folder with a folder per data set")
    run.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    run.add_argument(
        "--speed", action="store_true", help="measure only the speed column, of all methods, on made images"
    )
    run.add_argument("--minutes", type=float, help="stop cleanly after so many")
    return p


def account(row: published.Row, data: Path) -> str:
    """What becomes of a row: what it needs that is not there, or that it can be trained."""
    needs = [] if datasets.folder_of(row.dataset, data).is_dir() else [row.dataset]
    if row.dataset == "MPII" and find_spec("timm") is None:
        needs.append("HRNet-W32 of timm")
    state = f"needs {' and '.join(needs)}" if needs else "can be trained: all that it needs is there"
    return state if row.footnote is None else f"quoted from another paper; to train it as well: {state}"


def listing(data: Path) -> str:
    """Every table, and each of its rows in one line of counts."""
    lines, total = [], 0
    for name in TABLES:
        found = list(rows_of(name))
        total += len(found)
        caption = published.tables()[name]["caption"] if name in published.tables() else show.OUR_TABLE
        lines.append(f"{name:8} {len(found):3} rows: {caption}")
        for state, count in Counter(account(row, data) for row in found).items():
            lines.append(f"{count:12} {state}")
    ours = len(list(rows_of(FASHION)))
    return "\n".join(
        [*lines, f"{total - ours} rows of {len(TABLES) - 1} tables of the papers, {ours} of ours."]
    )


def made_data(folder: Path, names: Sequence[str]) -> None:
    """Writes small files in the formats of the data sets that are not there."""
    for name in names:
        if not (folder / name).exists():
            datasets.write(name, folder / name)


def measure_speed(options: argparse.Namespace) -> None:
    """Prints the column for each network of the table, and keeps it in ``TABLE-speed.json``."""
    networks = dict.fromkeys(row.network for row in rows_of(options.table))
    lines = []
    for network in options.networks or networks:
        found = speed.measure(
            network,
            options.methods or speed.methods_of(options.table),
            small=options.made,
            batch_size=32 if options.made else 128,
            rounds=speed.ROUNDS,
            device=str(options.device),
        )
        lines += found
        print(f"{network}\n\n{speed.markdown(found)}")
    print(ON_THE_DEVICE)
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(lines, indent=1) + "\n"
    (options.out / f"{options.table}-speed.json").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    p = parser()
    options = p.parse_args(arguments)
    if options.command == "list":
        print(listing(options.data))
        return
    if options.command == "run" and options.speed:
        measure_speed(options)
        return
    rows = list(
        jobs(
            options.table,
            seeds=options.seeds,
            epochs=options.epochs,
            methods=options.methods,
            networks=options.networks,
            datasets=options.datasets,
            made=options.made,
            whole=options.whole,
        )
    )
    if options.command == "run":
        todo: dict[str, Job] = {job.key: job for _, of_row in rows for job in of_row}
        if options.made:
            made_data(options.data, list(dict.fromkeys(job.dataset for job in todo.values())))
        if any(job.augmentation is not None for job in todo.values()):
            print(ON_THE_DEVICE, file=sys.stderr)
        seconds = None if options.minutes is None else 60 * options.minutes
        # Seed by seed: what is there when it is stopped compares all methods.
        order = sorted(todo.values(), key=lambda job: job.seed)
        if not runs.run(order, options.data, options.out, options.device, seconds=seconds):
            print("The time is over; the same command goes on.")
    lines = []
    for row, of_row in rows:
        records = [record for job in of_row if (record := runs.done(job, options.out))]
        if of_row:
            lines.append(show.line(row, of_row, records))
    options.out.mkdir(parents=True, exist_ok=True)
    show.write(options.table, lines, options.out)
    print(show.markdown(options.table, lines))


if __name__ == "__main__":
    main()
