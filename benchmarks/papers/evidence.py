"""``python -m benchmarks.papers.evidence``: fills docs/evidence.md and draws its picture.

From `fashion.json`, which is what ``run fashion`` and ``show fashion`` write to their folder, and from
`papers_speed.json`, which is what ``run vsam-3 --speed`` writes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ..markdown import filled, table
from ..spread import spread, standard_errors
from . import fashion, fashion_picture, picture, published

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/evidence.md"
FASHION = ROOT / "benchmarks/results/evidence/fashion.json"
PICTURE = FASHION.with_suffix(".png")
SPEED = FASHION.with_name("papers_speed.json")

Line = dict[str, Any]
FAIR = "Random half"  # with AUSAM's whole first epoch
NAMES = {
    "SAM+Random, full_epochs 1": FAIR,
    "LookSAM-5, alpha 0.1": "LookSAM-5, alpha = 0.1",
    "SAM+Random": "Random half, from the first epoch on",
    "AUSAM-0.5": "AUSAM-0.5",
    "AUSAM-0.5, weighted True": "AUSAM-0.5, weighted",
    "AUSAM-0.5, score probability": "AUSAM-0.5, probability score",
}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def by_name(lines: Sequence[Line]) -> dict[str, Line]:
    """Only the seeds that all methods have: every difference is paired."""
    seeds = set.intersection(*(set(line["seeds"]) for line in lines))
    found = {}
    for line in lines:
        own = picture.name(line)
        keep = [i for i, seed in enumerate(line["seeds"]) if seed in seeds]
        lists = {k: [v[i] for i in keep] for k, v in line.items() if isinstance(v, list)}
        found[NAMES.get(own, own)] = {**line, **lists}
    return found


def difference(line: Line, other: Line) -> list[float]:
    """After the last epoch, seed by seed."""
    return [a - b for a, b in zip(line["last"], other["last"], strict=True)]


def cost(line: Line, sam: Line) -> float:
    """Of SAM's passes: going back through the network takes as much as going forward twice."""
    return _passes(line) / _passes(sam)


def _passes(line: Line) -> float:
    return mean(f + 2 * b for f, b in zip(line["forward"], line["backward"], strict=True))


def against(line: Line, other: Line) -> str:
    """Mean and standard deviation of the paired difference, and in how many seeds it is above 0."""
    if line is other:
        return ""
    d = difference(line, other)
    return f"{spread(d, '+')} ({sum(x > 0 for x in d)} of {len(d)})"


def fashion_table(lines: Sequence[Line]) -> str:
    of = by_name(lines)
    cells = [["Method", "last epoch, %", "best epoch, %", "minus SAM", "minus random half", "passes / SAM's"]]
    for name, line in of.items():
        row = [name, spread(line["last"]), spread(line["best"])]
        row += [against(line, of[other]) for other in ("SAM", FAIR)]
        cells.append([*row, f"{cost(line, of['SAM']):.2f}"])
    return table(cells, left=1)


def settings_table(tried: Sequence[Line]) -> str:
    cells = [["Method", "learning rate", "rho", "validation images, %"]]
    for row in tried:
        pair = (row["learning_rate"], row["rho"])
        mark = ", chosen" if fashion.chosen(tried)[row["method"]] == pair else ""
        rho = f"{row['rho']:g}" if row["method"] == "SAM" else ""
        cells.append([row["method"], f"{row['learning_rate']:g}", rho, spread(row["accuracy"]) + mark])
    return table(cells, left=1)


def protocol(lines: Sequence[Line]) -> str:
    """What was run, and how long it took."""
    of = by_name(lines)
    seeds = of["SAM"]["seeds"]
    sam, sgd = (of[name]["trained with"] for name in ("SAM", "SGD"))
    hours = sum(sum(line["seconds"]) for line in of.values()) / 3600
    fastest = sum(sum(line["fastest epoch"]) for line in of.values()) * sam["epochs"] / 3600
    whole = 60_000 / sam["size"]
    return (
        f"{len(of)} rows with {len(seeds)} seeds: {sam['size']:,} training images, {sam['epochs']} epochs, "
        f"batches of {sam['batch_size']}, momentum 0.9, weight decay {sam['weight_decay']:g}; learning rate "
        f"{sam['learning_rate']:g} and rho {sam['rho']:g}, learning rate {sgd['learning_rate']:g} for "
        f"methods that perturb nothing. Training took {hours:.1f} hours of a core that had other work to do; "
        f"at the pace of each run's fastest epoch it is {fastest:.1f}. All 60,000 images take "
        f"{whole:g} times as long: {whole * fastest:.0f} hours at that pace."
    )


def speed_table(lines: Sequence[Line]) -> str:
    cells = [["Method", "SAM%", "quartiles", "limit", "of the limit", "second passes"]]
    for line in lines:
        row = [line["method"], f"{line['SAM%']:.0f}", f"{line['q1']:.0f} to {line['q3']:.0f}"]
        row += [f"{line['limit']:.0f}", f"{100 * line['SAM%'] / line['limit']:.0f} %"]
        cells.append([*row, f"{line['second passes'] or ''}"])
    return table(cells, left=1)


def blocks() -> dict[str, str]:
    """What is between the page's markers, by name."""
    lines = read(FASHION)
    return {
        "protocol": f"\n{protocol(lines)}\n\n",
        "fashion": f"\n{fashion_table(lines)}\n",
        "says": f"\n{says(lines)}\n\n",
        "settings": f"\n{settings_table(read(fashion.RESULTS)['rows'])}\n",
        "speed": f"\n{speed_table(read(SPEED))}\n",
    }


def verdict(d: Sequence[float]) -> str:
    """Above or below 0 by more than two standard errors, or level."""
    if len(d) < 3:
        return "too few seeds to tell"
    errors = standard_errors(d)
    return "level" if abs(errors) <= 2 else "above" if errors > 0 else "below"


def says(lines: Sequence[Line]) -> str:
    """What the table shows, with its figures."""
    of = by_name(lines)

    def minus(name: str, other: str) -> str:
        d = difference(of[name], of[other])
        return f"{spread(d, '+')} ({verdict(d)})"

    def passes(name: str) -> str:
        return f"{cost(of[name], of['SAM']):.2f}"

    against_sam = {name: verdict(difference(line, of["SAM"])) for name, line in of.items() if name != "SAM"}
    below = [name for name, found in against_sam.items() if found == "below"]
    above = [name for name, found in against_sam.items() if found == "above"]
    cheap = {n: mean(line["last"]) for n, line in of.items() if cost(line, of["SAM"]) < 0.6}
    best = max(cheap, key=lambda name: cheap[name])
    return "\n".join(
        [
            f"- SAM minus SGD: {minus('SAM', 'SGD')}. Of the other {len(against_sam) - 1} rows "
            f"{_listed([n for n in above if n != 'SGD'])} above SAM, and "
            f"{_listed([n for n in below if n != 'SGD'])} below it.",
            f"- AUSAM at half of the samples, {passes('AUSAM-0.5')} of SAM's passes: minus SAM "
            f"{minus('AUSAM-0.5', 'SAM')}; minus a random half that has a whole first epoch too "
            f"{minus('AUSAM-0.5', FAIR)}, weighted {minus('AUSAM-0.5, weighted', FAIR)}, with the "
            f"probability score {minus('AUSAM-0.5, probability score', FAIR)}. The random half minus SAM: "
            f"{minus(FAIR, 'SAM')}. The paper: {_printed('ausam-2', 'AUSAM-0.5')} and, of a random half, "
            f"{_printed('ausam-5', 'SAM+Random')} (ResNet-18, CIFAR-100).",
            f"- vSAM at {passes('vSAM')} of SAM's passes: minus SAM {minus('vSAM', 'SAM')}, minus SGD "
            f"{minus('vSAM', 'SGD')}; without reuse minus SAM {minus('vSAM-A', 'SAM')}; AUSAM and vSAM at "
            f"{passes('AUSAM+vSAM')}: minus SGD {minus('AUSAM+vSAM', 'SGD')}. Of what costs less than 0.6 of "
            f"SAM's passes the best row is {best}, {spread(of[best]['last'])}.",
        ]
    )


def _printed(which: str, method: str) -> str:
    of = {(row.method, row.network, row.dataset): row.printed for row in published.rows(which)}
    return of[method, "ResNet-18", "CIFAR-100"]["accuracy"].replace("±", " ± ")


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return f"{names[0]} is" if names else "none is"
    return f"{', '.join(names[:-1])} and {names[-1]} are"


def main() -> None:
    lines = read(FASHION)
    PICTURE.write_bytes(fashion_picture.draw(by_name(lines), difference, cost))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), blocks()), encoding="utf-8")


if __name__ == "__main__":
    main()
