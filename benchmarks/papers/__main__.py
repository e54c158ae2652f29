"""``python -m benchmarks.papers``: lists both papers' tables, trains their rows, shows what came out."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import data, runs
from ..job import Job
from . import published, show, speed
from .jobs import TABLES, jobs


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.papers", description=__doc__.split(":", 1)[1])
    commands = p.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every table, its rows, and what data they need")
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
        each.add_argument("--out", type=Path, default=Path("papers-results"), help="where the runs are kept")
    run.add_argument("--data", type=Path, default=Path("data"), help="folder with a folder per data set")
    run.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    run.add_argument(
        "--speed", action="store_true", help="measure the speed column alone, of all methods, on made images"
    )
    run.add_argument("--minutes", type=float, help="stop cleanly after so many")
    return p


def listing() -> str:
    lines = []
    for name, table in published.tables().items():
        found = list(published.rows(name))
        own = [row for row in found if row.footnote is None]
        needs = " and ".join(dict.fromkeys(row.dataset for row in found))
        state = f"{len(own)} to be trained, {len(found) - len(own)} quoted from other papers"
        lines.append(f"{name:8} {len(found):3} rows; {state}; needs {needs}\n         {table['caption']}")
    return "\n".join(lines)


def made_data(folder: Path, names: Sequence[str]) -> None:
    """Writes small files in the formats of the data sets that are not there."""
    for name in names:
        if not (folder / name).exists():
            data.write(name, folder / name)


def measure_speed(options: argparse.Namespace) -> None:
    """Prints the column for each network of the table, and keeps it in ``TABLE-speed.json``."""
    networks = dict.fromkeys(row.network for row in published.rows(options.table))
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
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(lines, indent=1) + "\n"
    (options.out / f"{options.table}-speed.json").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    p = parser()
    options = p.parse_args(arguments)
    if options.command == "list":
        print(listing())
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
        )
    )
    if options.command == "run":
        todo: dict[str, Job] = {job.key: job for _, of_row in rows for job in of_row}
        if options.made:
            made_data(options.data, list(dict.fromkeys(job.dataset for job in todo.values())))
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
