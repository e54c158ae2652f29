"""Steps in bfloat16 and channels_last: eager, as CUDA graphs and compiled.

`python -m benchmarks.steps.precision`. The batch stays on the device: nothing but the step is timed. AUSAM
trains on half of it, which was chosen before; images per second are those of the whole batch. SAM% is the
pace as a share of SAM's. Host time is what the host needs to start a step, whatever the GPU still has to do.
"""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausam_ext import ADLP, SAM

from .. import parts
from ..harness import Row, compare, graph, host_seconds, row
from ..networks import PAPERS, small_cnn

METHODS = ("SGD", "SAM", "AUSAM-0.5")
EAGER, GRAPH, COMPILED = "eager", "graph", "torch.compile"


class Step:
    """A step of one method of METHODS; ``dtype`` other than float32 by autocast, and in channels_last."""

    def __init__(
        self,
        method: str,
        network: Callable[[], nn.Module],
        batch_size: int,
        dtype: torch.dtype,
        device: str,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.dtype, self.device = dtype, device
        layout = torch.channels_last if dtype != torch.float32 else torch.contiguous_format
        size = batch_size // 2 if method.startswith("AUSAM") else batch_size
        self.model = network().to(device, memory_format=layout)
        self.forward = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.x = torch.randn(size, 3, 32, 32, device=device).to(memory_format=layout)
        self.y = torch.randint(10, (size,), device=device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        self.sam = None if method == "SGD" else SAM(self.forward)
        self.adlp = ADLP(batch_size, device) if size < batch_size else None
        self.index = torch.arange(size, device=device)

    def backward(self) -> Tensor:
        # One context for each pass: it keeps casts of the weights, which the other pass has others of.
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            losses = F.cross_entropy(self.forward(self.x), self.y, reduction="none")
        losses.mean().backward()
        return losses.detach()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        losses = self.backward()
        if self.sam is not None:
            with self.sam.perturbed():
                perturbed = self.backward()
            if self.adlp is not None:
                self.adlp.update(self.index, losses, perturbed)
        self.optimizer.step()


def measure(
    name: str,
    network: Callable[[], nn.Module],
    batch_size: int,
    dtype: torch.dtype = torch.bfloat16,
    compiled: bool = False,
    *,
    rounds: int = 8,
    device: str,
) -> list[Row]:
    """A row for each method."""
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for method in METHODS:
        step = partial(Step, method, network, batch_size, dtype, device)
        calls[method, EAGER] = step()
        if device == "cuda":
            calls[method, GRAPH] = graph(step())
        if compiled:
            calls[method, COMPILED] = step(compiled=True)
    timed = compare({f"{m}, {c}": f for (m, c), f in calls.items()}, rounds=rounds, min_time=0, device=device)
    rows = []
    for method in METHODS:
        columns = [column for m, column in calls if m == method]
        paces = {c: batch_size / median(timed[f"{method}, {c}"]) for c in columns}
        host = {c: host_seconds(calls[method, c], device) for c in columns}
        of_sam = {c: batch_size / median(timed[f"SAM, {c}"]) for c in columns}
        rows.append(
            row(
                "precision",
                method,
                f"{name}, {batch_size} images, {str(dtype).removeprefix('torch.')}",
                {c: timed[f"{method}, {c}"] for c in columns},
                images_per_second={c: round(pace, 1) for c, pace in paces.items()},
                SAM_percent={c: round(100 * pace / of_sam[c], 1) for c, pace in paces.items()},
                host_microseconds={c: round(1e6 * seconds, 1) for c, seconds in host.items()},
            )
        )
    return rows


def settings(device: str, brief: bool) -> parts.Parts:
    if device == "cpu":
        return {"small CNN": partial(measure, "small CNN", small_cnn, 64, device=device)}
    small, wide = ((name, PAPERS[name]) for name in ("ResNet-18", "WideResNet-28-10"))
    return {
        "ResNet-18, 128": partial(measure, *small, 128, device=device),
        "ResNet-18, 512": partial(measure, *small, 512, device=device),
        "WideResNet-28-10, 128": partial(measure, *wide, 128, device=device),
        "WideResNet-28-10, 512": partial(measure, *wide, 512, device=device),
        "ResNet-18, 512, float32": partial(measure, *small, 512, torch.float32, device=device),
        # Last: it compiles for a minute. Its rows have all columns, and replace the first ones.
        "ResNet-18, 128, compiled": partial(measure, *small, 128, compiled=True, device=device),
    }


if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True  # all batches of a method are of one size
    parts.main("steps.precision", settings, threads=1)
