"""What a training step costs with each method, and how close that is to the ideal.

All methods of a network take turns, epoch by epoch, in one process: `python -m benchmarks.steps`. Images per
second are those of a batch before the choice, as the papers count. ``--seconds`` measures fewer methods in
fewer rounds, and leaves out the settings that do not fit.
"""

from functools import partial

import torch

from .. import parts
from ..networks import PAPERS, resnet18, small_cnn
from .family import FAMILY
from .measure import measure
from .variants import ALL, columns

LAST = "PyramidNet-110"  # it takes as long as all others


def settings(device: str, brief: bool = False) -> parts.Parts:
    """Small networks; if there is a GPU those of the papers too, and each step as a CUDA graph.

    ``brief``: fewer methods and rounds.
    """
    few = columns([0.5], [0.3])
    if device == "cpu":
        chosen = {
            ("small CNN", small_cnn, 64): ALL,
            ("ResNet-18, 1/8 width", partial(resnet18, width=8), 32): few,
        }
        kinds = {"from memory": False, "PNG files": True}
        steps = {
            f"{name}, {kind}": partial(
                measure, "steps", name, network, own, encoded=encoded, rounds=3, instances=4, batch_size=size
            )
            for kind, encoded in kinds.items()
            for (name, network, size), own in chosen.items()
        }
        family = {
            f"{name}, the family": partial(
                measure, "family", name, network, FAMILY, rounds=4, instances=6, batch_size=size
            )
            for name, network, size in chosen
        }
        return {name: partial(part, device=device) for name, part in {**steps, **family}.items()}
    # What matters most comes first: SAM% of the papers' networks.
    graphs = columns([0.5], [0.3], captured=True)
    networks = {name: network for name, network in PAPERS.items() if name != LAST} | {"small CNN": small_cnn}
    kinds = {
        "from memory": (few if brief else ALL, False),
        "from memory, graph": (graphs, False),
        "PNG files": (few if brief else ALL, True),
        **({} if brief else {"PNG files, graph": (graphs, True)}),
    }
    rounds = 3 if brief else 6
    return {
        f"{name}, {kind}": partial(
            measure, "steps", name, network, own, encoded=encoded, rounds=rounds, device=device
        )
        for some in (networks, {LAST: PAPERS[LAST]})
        for kind, (own, encoded) in kinds.items()
        for name, network in some.items()
    }


if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True  # all batches of a method are of one size
    parts.main("steps", settings, threads=1)  # what else runs on a machine disturbs one thread least
