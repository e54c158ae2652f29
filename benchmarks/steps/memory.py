"""Peak memory of a training run with each method, above SGD's: `python -m benchmarks.steps.memory`.

Counted by torch's own allocators, to the byte, what C++ takes for itself included. SAM may hold one copy of
the parameters more than SGD, vSAM two; both also a copy of the running statistics. AUSAM holds SAM's copy and
9 bytes for each sample of the training set, but the activations of ``alpha * K`` samples instead of ``K``.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from .. import parts
from ..data import in_memory
from ..harness import Row
from ..networks import PAPERS, mlp, resnet18, small_cnn
from .epochs import STEPS, Epoch
from .measure import BATCH_SIZE
from .variants import columns

COLUMNS = columns([0.5], [0.3])
# How many copies of the parameters each may hold above SGD.
COPIES = {"SAM": 1, "AUSAM-0.5": 1, "vSAM-0.3": 2, "AUSAM-0.5 + vSAM-0.3": 2}
SCALARS = 1024  # bytes, for norms and the like


def peak(run: Callable[[], object], device: str = "cpu") -> int:
    """Bytes that torch's allocator was asked for at once during the call, above those at its beginning."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        run()
        return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def peak_of(what: str, network: Callable[[], nn.Module], batch_size: int, device: str = "cpu") -> int:
    """Of an epoch, its model, optimizer and batches, but without the training set."""
    data = in_memory(STEPS * batch_size, device)

    def train() -> None:
        Epoch(COLUMNS[what].make, network, data, batch_size, device)()

    if device == "cuda":
        train()  # cuBLAS keeps what its first call takes
    return peak(train, device)


def bytes_of(network: Callable[[], nn.Module]) -> tuple[int, int]:
    """Of the parameters, and of the running statistics."""
    with torch.device("meta"):
        model = network()
    return tuple(sum(t.nbytes for t in tensors) for tensors in (model.parameters(), model.buffers()))


def limit(what: str, network: Callable[[], nn.Module], batch_size: int) -> int:
    """Bytes that a method may hold above SGD."""
    parameters, statistics = bytes_of(network)
    table = 8 * STEPS * batch_size if what.startswith("AUSAM") else 0
    return COPIES[what] * parameters + statistics + table + SCALARS


def measure(
    name: str, network: Callable[[], nn.Module], device: str, batch_size: int = BATCH_SIZE
) -> list[Row]:
    sgd = peak_of("SGD", network, batch_size, device)
    rows = []
    for what in COPIES:
        extra = peak_of(what, network, batch_size, device) - sgd
        row: Row = {
            "suite": "memory",
            "what": f"{what}, above SGD",
            "size": f"{name}, {batch_size} images",
            "columns": {},
            "ratios": {},
            "against": None,
            "target": None,
            "bytes": extra,
            "note": None,
            "copies_of_the_parameters": round(extra / bytes_of(network)[0], 4),
            "SGD": sgd,
        }
        if not what.startswith("AUSAM"):  # AUSAM's fewer activations would hide what it holds
            ratio = limit(what, network, batch_size) / extra
            row |= {"ratios": {"limit": {"median": ratio}}, "against": "limit", "target": 1.0}
        rows.append(row)
    return rows


def networks(device: str, brief: bool) -> parts.Parts:
    chosen: dict[str, tuple[Callable[[], nn.Module], int]] = {
        "MLP": (mlp, BATCH_SIZE),
        "small CNN": (small_cnn, 32),
    }
    if device == "cpu":
        chosen["ResNet-18, 1/4 width"] = (partial(resnet18, width=16), 8)
    else:
        chosen |= {name: (network, BATCH_SIZE) for name, network in PAPERS.items()}
    return {name: partial(measure, name, network, device, size) for name, (network, size) in chosen.items()}


if __name__ == "__main__":
    parts.main("steps.memory", networks)
