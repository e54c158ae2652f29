"""What is trained for a table: one job for each method, network, data set and seed of its rows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..job import Job
from . import fashion, settings
from .published import Row, recipe, rows, setting, tables

QUANTISERS = {"ausam-6": "Jacob", "vsam-5": "LSQ"}
FASHION = "fashion"  # a table of our own: all methods on Fashion-MNIST
TABLES = (*tables(), FASHION)
# What makes the networks small enough for `--made`, and the data sets' epochs.
SMALL: dict[str, dict[str, Any]] = {
    "ResNet-18": {"width": 8},
    "ResNet-50": {"width": 8},
    "WideResNet-28-10": {"width": 1},
    "PyramidNet-110": {"alpha": 27},
    "MobileNetV1": {"width": 4},
}


def jobs(
    table: str,
    *,
    seeds: int,
    epochs: int | None = None,
    methods: Sequence[str] = (),
    networks: Sequence[str] = (),
    datasets: Sequence[str] = (),
    made: bool = False,
    whole: bool = False,
) -> Iterator[tuple[Row, list[Job]]]:
    """For each row of ``table`` its jobs, one per seed; none for rows that are not to be trained.

    ``whole``: `fashion` on all training images.
    """
    for row in rows_of(table):
        chosen = (
            (not methods or row.method in methods)
            and (not networks or row.network in networks)
            and (not datasets or row.dataset in datasets)
        )
        of_seed = partial(fashion.job, whole=whole) if table == FASHION else partial(job, table)
        yield row, [of_seed(row, seed, epochs=epochs, made=made) for seed in range(seeds)] if chosen else []


def rows_of(table: str) -> Iterator[Row]:
    return fashion.rows() if table == FASHION else rows(table)


def job(table: str, row: Row, seed: int, epochs: int | None, made: bool) -> Job:
    """With the settings of the papers, and for short runs AUSAM's range and vSAM's rate in proportion."""
    whole = recipe("epochs", row.network) if row.dataset != "MPII" else setting("Adam", "epochs")
    epochs = epochs or (2 if made else whole)
    method = {"Full prec.": "SGD", "AUSAM": "AUSAM-0.5"}.get(row.method, row.method.removeprefix("LSQ+"))
    network, quantiser = row.network, None
    if table in QUANTISERS:
        network = "ResNet-18, ImageNet stem" if network == "ResNet-18" else network
        quantiser = QUANTISERS[table] if row.method != "Full prec." else None
    own = {name: value for name, value in row.settings.items() if name in ("alpha", "gamma")}
    chosen = Job(
        method,
        network,
        row.dataset,
        seed,
        epochs,
        32 if made else recipe("batch_size", network),
        recipe("lr", network),
        recipe("weight_decay", network),
        setting("SAM", "rho", network),
        {**settings.settings(method, row, epochs / whole), **own},
        smoothing=recipe("label_smoothing", network),
        # Crops are of small images only.
        augmentation={
            "pad": recipe("crop_padding", network) if row.dataset != "Tiny-ImageNet" else 0,
            "cutout": recipe("cutout", network)["size"],
        },
        small=SMALL.get(row.network, {}) if made else {},
        made=made,
    )
    if row.dataset == "MPII":
        rate, rho, size = setting("Adam", "lr"), setting("SimCC", "rho"), setting("Adam", "batch_size")
        chosen = replace(chosen, batch_size=4 if made else size, learning_rate=rate, weight_decay=0.0)
        return replace(chosen, rho=rho, smoothing=0.0, augmentation=None)
    if quantiser is None:
        return chosen
    # As in the papers, from a network of full precision: the table's first rows.
    full = replace(chosen, method="SGD", settings={})
    rate, decay = (setting("LSQ", name) for name in ("lr", "weight_decay"))
    return replace(
        chosen, learning_rate=rate, weight_decay=decay, rho=0.05, quantiser=quantiser, starts_from=full.key
    )
