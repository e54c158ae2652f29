"""``python -m benchmarks.evidence.gradient_error``: how far a half's gradient is from that of its batch.

In a training with plain AUSAM, after 15, 50 and 90 % of its epochs: a batch of 512 is drawn, and halves of
it by every scheme, from AUSAM's own table. Per-sample gradients are exact, so that nothing but the draw is
random; BatchNorm uses its running statistics, or a sample would have no gradient of its own.

- error: ``E ||g_S - g_B||^2 / ||g_B||^2``, at ``w`` and at ``w + eps`` of the batch, and the part of it that
  is bias, ``||E g_S - g_B||^2 / ||g_B||^2``.
- sharpness: what AUSAM's Theorem 1 is about, ``L(w + eps) - L(w)``, with loss, gradient and ``eps`` of the
  half, minus the batch's and relative to it: mean of the absolute value, and mean.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from tqdm import tqdm

from ausam_ext import ops

from ..data import digits
from ..markdown import table as markdown
from ..training import Training
from .proportional import in_proportion
from .rows import Row, write
from .tasks import DATA, TASKS, available, training, with_method

RESULTS = Path(__file__).parents[1] / "results/evidence/gradient_error.json"
NAMES = ("Fashion-MNIST", digits.WRONG)
SHARES = (0.15, 0.5, 0.9)
SEEDS = range(3)
BATCH, DRAWS, SHARP_DRAWS = 512, 400, 40
S_MIN, S_MAX = 0.1, 1.0
COLUMNS = ("error", "bias", "error_perturbed", "bias_perturbed", "sharpness_off", "sharpness_excess")

Draw = Callable[[int, torch.Generator], Tensor]  # of so many halves: each sample's share, [draws, n]


def race(scores: Tensor, weights: str = "", s_min: float = S_MIN, s_max: float = S_MAX) -> Draw:
    def draw(draws: int, generator: torch.Generator) -> Tensor:
        rows, k = scores.expand(draws, -1), len(scores) // 2
        noise = torch.empty(rows.shape).exponential_(generator=generator)
        keep = ops.subset_sample(rows, k, s_min=s_min, s_max=s_max, noise=noise)
        w = torch.ones(draws, k)
        if weights:
            w = ops.subset_weights(rows, keep, noise, s_min=s_min, s_max=s_max)
        if weights == "normalised":
            w = w / w.mean(-1, keepdim=True)
        return torch.zeros(rows.shape).scatter(1, keep, w / k)

    return draw


def schemes(scores: Tensor) -> dict[str, Draw]:
    clamped, bounds = in_proportion(scores)
    return {
        "random half": race(scores, s_min=1.0, s_max=1.0),
        "AUSAM": race(scores),
        "AUSAM, weighted": race(scores, "unbiased"),
        "AUSAM, weighted and normalised": race(scores, "normalised"),
        "proportional, weighted": race(clamped, "unbiased", **bounds),
        "proportional, weighted and normalised": race(clamped, "normalised", **bounds),
    }


class Batch:
    """Losses and gradients of single samples, anywhere in weight space."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model.eval(), x, y
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.w = torch.cat([p.detach().flatten() for p in model.parameters()])

    def _weights(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return {
            name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def gradients(self, flat: Tensor) -> Tensor:
        """``[n, weights]``."""

        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(self.model, weights, (x[None],)), y[None])

        each = vmap(grad(loss), in_dims=(None, 0, 0))(self._weights(flat), self.x, self.y)
        return torch.cat([g.flatten(1) for g in each.values()], 1)

    @torch.no_grad()
    def losses(self, flat: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        output = functional_call(self.model, self._weights(flat), (self.x[rows],))
        return F.cross_entropy(output, self.y[rows], reduction="none")


def error(shares: Tensor, gram: Tensor) -> tuple[float, float]:
    """Error and, without the draws' own variance, bias, from each draw's shares and ``g_i . g_j``."""
    n, draws = len(gram), len(shares)
    whole = torch.full((n,), 1 / n, dtype=torch.float64)
    off = shares.double() - whole
    norm = whole @ gram @ whole
    squares, total = ((off @ gram) * off).sum(), off.sum(0)
    bias = (total @ gram @ total - squares) / (draws * (draws - 1))
    return (squares / draws / norm).item(), (bias / norm).item()


def sharpness(batch: Batch, gradients: Tensor, shares: Tensor, rho: float) -> tuple[float, float]:
    """How far ``L(w + eps) - L(w)`` of halves is from the batch's: mean of the absolute value, and mean."""

    def ascent(g: Tensor) -> Tensor:
        return batch.w + rho * g / g.norm()

    before = batch.losses(batch.w)
    whole = (batch.losses(ascent(gradients.mean(0))) - before).mean()
    off = []
    for share, g in zip(shares, shares @ gradients, strict=True):
        rows = share.nonzero().flatten()
        rise = batch.losses(ascent(g), rows) - before[rows]
        off.append(((share[rows] * rise).sum() / whole - 1).item())
    return mean(map(abs, off)), mean(off)


def measure(run: Training, generator: torch.Generator) -> dict[str, list[float]]:
    """``COLUMNS`` of each scheme, where the training is."""
    adlp, rho = run.method.adlp, run.job.rho
    index = torch.randperm(len(adlp), generator=generator)[:BATCH]
    batch = Batch(run.model, *run.problem.dataset.__getitems__(index.tolist())[:2])
    at_w = batch.gradients(batch.w)
    g = at_w.mean(0)
    at_eps = batch.gradients(batch.w + rho * g / g.norm())
    grams = [(each @ each.T).double() for each in (at_w, at_eps)]
    found = {}
    for scheme, draw in schemes(adlp.mean(index)).items():
        halves = draw(DRAWS, generator)
        values = [*error(halves, grams[0]), *error(halves, grams[1])]
        found[scheme] = [*values, *sharpness(batch, at_w, halves[:SHARP_DRAWS], rho)]
    return found


def measured(name: str, data: Path, progress: Any) -> list[Row]:
    """A row for each share of the training and each scheme: means over the seeds."""
    job = with_method(TASKS[name], "AUSAM")
    found: dict[tuple[float, str], list[list[float]]] = {}
    for seed in SEEDS:
        run, generator = training(replace(job, seed=seed), data), torch.Generator().manual_seed(seed)
        at = {round(share * job.epochs): share for share in SHARES}
        for index in run.steps():
            if index is None and run.epoch in at:
                for scheme, values in measure(run, generator).items():
                    found.setdefault((at[run.epoch], scheme), []).append(values)
                progress.update()
    rows = []
    for (share, scheme), of_seeds in found.items():
        means = [round(mean(values), 4) for values in zip(*of_seeds, strict=True)]
        row = {"task": name, "share": share, "scheme": scheme}
        rows.append(row | dict(zip(COLUMNS, means, strict=True)))
    return rows


def table(rows: Sequence[Row], task: str) -> str:
    """Markdown: error (bias) at ``w`` and at ``w + eps``, and sharpness, at each share of the training."""
    rows = [row for row in rows if row["task"] == task]
    shares = sorted({row["share"] for row in rows})
    cells = [["Half", *(f"{what}, {s:.0%}" for what in ("at w", "at w + ε", "sharpness") for s in shares)]]
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        own = [row for row in rows if row["scheme"] == scheme]
        numbers = [f"{row['error']:.2f} ({row['bias']:.2f})" for row in own]
        numbers += [f"{row['error_perturbed']:.2f} ({row['bias_perturbed']:.2f})" for row in own]
        numbers += [f"{row['sharpness_off']:.2f} ({row['sharpness_excess']:+.2f})" for row in own]
        cells.append([scheme, *(each.replace("(-0.00", "(0.00") for each in numbers)])
    return markdown(cells, 1)


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.evidence.gradient_error", description=__doc__)
    p.add_argument("--output", type=Path, default=RESULTS, help="JSON that is written")
    p.add_argument("--data", type=Path, default=DATA, help="folder with Fashion-MNIST")
    options = p.parse_args()
    torch.set_num_threads(1)
    names = available(NAMES, options.data)
    with tqdm(total=len(names) * len(SHARES) * len(SEEDS), unit=" batches") as progress:
        rows = [row for name in names for row in measured(name, options.data, progress)]
    write(options.output, rows)
    for name in names:
        print(f"{name}\n\n{table(rows, name)}")


if __name__ == "__main__":
    main()
