"""A SAM step beside the other SAMs that are released for PyTorch: `python -m benchmarks.steps.peers`.

The packages are installed into ``build/peers``, without what they depend on, and put on this process's path
alone. All take turns on equal networks and data around ``torch.optim.SGD``, as their documentation has it.
None of the others keeps running statistics to the first pass, here or by itself; ours does.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ausam_ext import SAM

from .. import parts
from ..harness import Row, compare, host_seconds, launches, row
from ..networks import PAPERS, mlp, resnet18, small_cnn
from .memory import peak

FOLDER = Path(__file__).parents[2] / "build" / "peers"
# zij carries the SAM of github.com/davda54/sam, which has no release and which most others copy.
PACKAGES = {"zij": "0.1.1", "pytorch_optimizer": "4.1.0"}
OURS = "ausam_ext"


def install() -> None:
    """Installs what is not there yet."""
    sys.path.append(str(FOLDER))
    wanted = [f"{name}=={version}" for name, version in PACKAGES.items()]
    there = {d.name: d.version for d in metadata.distributions(path=[str(FOLDER)])}
    if there != PACKAGES:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target"]
        subprocess.run([*pip, str(FOLDER), *wanted], check=True)


def makers() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """What makes the optimizer of each column, given parameters and SGD's settings."""
    zij = import_module("zij.contrib.sharpness_aware.sam").SAM
    kozistr = import_module("pytorch_optimizer").SAM
    sgd = torch.optim.SGD
    return {
        f"davda54's, in zij {PACKAGES['zij']}": partial(zij, base_optimizer=sgd),
        f"pytorch_optimizer {PACKAGES['pytorch_optimizer']}": partial(kozistr, base_optimizer=sgd),
        f"pytorch_optimizer {PACKAGES['pytorch_optimizer']}, foreach": partial(
            kozistr, base_optimizer=sgd, foreach=True
        ),
    }


class Step:
    """One SAM step of a network of its own; by the others' optimizer, or by ours around SGD.

    Without ``passes`` each of the two only puts gradients in place: what is left is SAM's own part and SGD's.
    """

    def __init__(
        self,
        make: Callable[..., torch.optim.Optimizer] | None,
        network: Callable[[], nn.Module],
        batch_size: int,
        device: str,
        passes: bool,
    ) -> None:
        torch.manual_seed(0)
        self.model = network().to(device)
        self.x = torch.randn(batch_size, 3, 32, 32, device=device)
        self.y = torch.randint(10, (batch_size,), device=device)
        self.params = list(self.model.parameters())
        self.grads = None if passes else [torch.randn_like(p) for p in self.params]
        self.optimizer = (make or torch.optim.SGD)(self.model.parameters(), lr=0.01, momentum=0.9)
        self.sam = SAM(self.model) if make is None else None

    def forward_backward(self) -> Tensor | None:
        if self.grads is None:
            F.cross_entropy(self.model(self.x), self.y).backward()
            return
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = g

    def __call__(self) -> None:
        self.forward_backward()
        if self.sam is not None:
            with self.sam.perturbed():
                self.forward_backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            self.optimizer.first_step(zero_grad=True)
            self.forward_backward()
            self.optimizer.second_step(zero_grad=True)


def measure(
    name: str, network: Callable[[], nn.Module], batch_size: int, *, device: str, passes: bool
) -> list[Row]:
    columns = {OURS: None, **makers()}
    steps = {c: Step(make, network, batch_size, device, passes) for c, make in columns.items()}
    for step in steps.values():
        step()
        torch.testing.assert_close(step.params, steps[OURS].params)  # the same algorithm
    seconds = compare(steps, rounds=30, min_time=0.02, device=device)
    facts: dict[str, dict[str, float]] = {"peak_bytes": {}}
    for column, make in columns.items():

        def train(make: Callable[..., torch.optim.Optimizer] | None = make) -> None:
            step = Step(make, network, batch_size, device, passes)
            for _ in range(3):
                step()

        facts["peak_bytes"][column] = peak(train, device)
    if device == "cuda":
        facts["launches"] = {c: launches(step) for c, step in steps.items()}
        facts["host_seconds"] = {c: host_seconds(step, device) for c, step in steps.items()}
    return [
        row(
            "peers",
            "SAM step" if passes else "SAM step without its passes",
            f"{name}, {batch_size} images" if passes else name,
            seconds,
            against=min(makers(), key=lambda c: median(seconds[c])),
            target=1.0,
            note="the passes, which are the same, take most of it" if passes else None,
            **facts,
        )
    ]


def networks(device: str, brief: bool) -> parts.Parts:
    install()
    narrow = ("ResNet-18, 1/8 width", partial(resnet18, width=8))
    passes = [("MLP", mlp, 32), ("small CNN", small_cnn, 8), (*narrow, 4)]
    if device == "cuda":
        passes += [(name, network, 128) for name, network in PAPERS.items()]
    # What is SAM's own, and the host's time; the last one is bound by memory.
    own = [("MLP", mlp, 32), (*narrow, 8), ("ResNet-18", resnet18, 8)]
    rows = [(*network, True) for network in passes] + [(*network, False) for network in own]
    return {
        f"{name}, {size} images{'' if whole else ', without its passes'}": partial(
            measure, name, network, size, device=device, passes=whole
        )
        for name, network, size, whole in rows
    }


if __name__ == "__main__":
    parts.main("steps.peers", networks, threads=1)  # what else runs on a machine disturbs one thread least
