"""What a training step costs with each method, and how close that is to the ideal.

All methods of a network take turns, epoch by epoch, in one process: `python -m benchmarks.steps`. Images per
second are those of a batch before the choice, as the papers count. ``--seconds`` measures fewer methods in
fewer rounds, and leaves out the settings that do not fit.
"""

import argparse
import signal
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..harness import Row, save
from ..networks import PAPERS, resnet18, small_cnn
from .family import FAMILY
from .measure import measure
from .variants import ALL, columns


def settings(device: str, brief: bool = False) -> list[Callable[..., list[Row]]]:
    """Small networks; where there is a GPU those of the papers too, and each step as a CUDA graph.

    ``brief``: fewer methods and rounds.
    """
    few = columns([0.5], [0.3])
    if device == "cpu":
        cnn = partial(measure, name="small CNN", network=small_cnn, batch_size=64)
        narrow = partial(
            measure, name="ResNet-18, 1/8 width", network=partial(resnet18, width=8), batch_size=32
        )
        return [
            *(
                partial(one, "steps", columns=chosen, encoded=encoded, rounds=3, instances=4)
                for encoded in (False, True)
                for one, chosen in ((cnn, ALL), (narrow, few))
            ),
            *(partial(one, "family", columns=FAMILY, rounds=4, instances=6) for one in (cnn, narrow)),
        ]
    graphs = columns([0.5], [0.3], captured=True)
    return [
        partial(measure, "steps", name, network, chosen, encoded=encoded, rounds=3 if brief else 6)
        for encoded in (False, True)
        for name, network in {"small CNN": small_cnn, **PAPERS}.items()
        for chosen in (few if brief else ALL, graphs)
    ]


def run(chosen: Sequence[Callable[..., list[Row]]], device: str, seconds: float | None = None) -> int:
    """Saves the rows of each setting as they come; returns how many settings the time was enough for."""

    def stop(*_: object) -> None:
        raise TimeoutError

    if seconds is not None:
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    rows: list[Row] = []
    done = 0
    try:
        for setting in chosen:
            rows += setting(device=device)
            done += 1
            save(rows, device)
    except TimeoutError:
        print(f"{seconds:.0f} s are over: {len(chosen) - done} of {len(chosen)} settings are left out")
    finally:
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--seconds", type=float, help="be brief, and leave out what does not fit")
    seconds = parser.parse_args().seconds
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)  # what else runs on the machine disturbs one thread least
    torch.backends.cudnn.benchmark = True  # all batches of a method are of one size
    if not run(settings(device, brief=seconds is not None), device, seconds):
        parser.exit(1, "no setting fitted\n")


if __name__ == "__main__":
    main()
