"""``python -m benchmarks.evidence.rho``: which rho is best, by network and by the optimizer that steps.

Small networks on digits with a quarter of the labels wrong, on validation images. Each rho has the best of
three learning rates, for each network and optimizer, by the mean over the seeds; rho 0 is the optimizer
without SAM. Half an hour of one core that others use too.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ausam_ext import SAM

from ..data import digits
from ..markdown import table as markdown
from ..networks import digits_cnn, mlp
from ..spread import spread, standard_errors
from .rows import Row, difference, read, write

RESULTS = Path(__file__).parents[1] / "results/evidence/rho.json"
RHOS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)
SEEDS = range(5)
EPOCHS, BATCH = 20, 64


class Transformer(nn.Module):
    """Two layers with LayerNorm, on the rows of an image as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.places = nn.Parameter(torch.zeros(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x.squeeze(1)) + self.places).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "CNN, BatchNorm": lambda: digits_cnn(channels=1, size=8),
    "MLP, no normalisation": lambda: mlp(channels=1, size=8, hidden=(64, 64)),
    "transformer, LayerNorm": Transformer,
}
Make = Callable[[nn.Module, float], torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[Make, tuple[float, ...]]] = {
    "SGD": (
        lambda model, rate: torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4),
        (0.0125, 0.05, 0.2),
    ),
    "AdamW": (lambda model, rate: torch.optim.AdamW(model.parameters(), rate), (3e-4, 1e-3, 3e-3)),
}


def train(network: str, optimizer: str, rate: float, rho: float, seed: int, epochs: int = EPOCHS) -> float:
    """Accuracy on validation images after the last epoch, in percent."""
    torch.manual_seed(seed)
    train_set, test_set = digits.load(digits.WRONG, seed, validation=True)
    mean_, std = train_set.mean[0], train_set.std[0]
    x, test = ((each.x.float() / 255 - mean_) / std for each in (train_set, test_set))
    model = NETWORKS[network]()
    steps = OPTIMIZERS[optimizer][0](model, rate)
    sam = SAM(model, rho)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        steps, lambda step: 0.5 * (1 + math.cos(math.pi * step / (epochs * (len(x) // BATCH))))
    )
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(BATCH):
            F.cross_entropy(model(x[chosen]), train_set.y[chosen]).backward()
            if rho:
                with sam.perturbed():
                    F.cross_entropy(model(x[chosen]), train_set.y[chosen]).backward()
            steps.step()
            steps.zero_grad()
            schedule.step()
    model.eval()
    with torch.no_grad():
        return round(100 * (model(test).argmax(1) == test_set.y).float().mean().item(), 4)


def plan() -> Iterator[Row]:
    for network, (optimizer, (_, rates)) in itertools.product(NETWORKS, OPTIMIZERS.items()):
        for rate, rho in itertools.product(rates, RHOS):
            yield {"network": network, "optimizer": optimizer, "learning_rate": rate, "rho": rho}


def best(rows: Sequence[Row], network: str, optimizer: str, rho: float) -> Row:
    """The row of the best learning rate."""
    of = [r for r in rows if (r["network"], r["optimizer"], r["rho"]) == (network, optimizer, rho)]
    return max(of, key=lambda row: mean(row["accuracy"]))


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each network and optimizer; the best in bold, what is level with it in italics."""
    cells = [["network", "optimizer", *(f"rho {rho:g}" if rho else "no SAM" for rho in RHOS)]]
    for network, optimizer in itertools.product(NETWORKS, OPTIMIZERS):
        found = [best(rows, network, optimizer, rho) for rho in RHOS]
        top = max(found, key=lambda row: mean(row["accuracy"]))
        line = [network, optimizer]
        for row in found:
            mark = "**" if row is top else "*" if standard_errors(difference(top, row)) < 2 else ""
            line.append(f"{mark}{spread(row['accuracy'])}{mark}")
        cells.append(line)
    return markdown(cells)


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.evidence.rho", description=__doc__)
    p.add_argument("--output", type=Path, default=RESULTS, help="JSON that is written; what it has is kept")
    path = p.parse_args().output
    rows = read(path) if path.exists() else [{**row, "seeds": [], "accuracy": []} for row in plan()]
    for seed, row in tqdm([(s, r) for s in SEEDS for r in rows if s not in r["seeds"]], unit=" runs"):
        of = (row[name] for name in ("network", "optimizer", "learning_rate", "rho"))
        row["accuracy"].append(train(*of, seed))
        row["seeds"].append(seed)
        write(path, rows)
    print(table(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
