"""The columns of `ausam_ext.baselines`: its methods, and the passes that each cannot do without.

The ideal of a method that takes its second pass at times is SGD's and SAM's step, in the proportion in which
it took both; that of K-SAM is SAM on the samples that it keeps, after a forward pass of all. That of another
is a loop that does the same passes over as many samples, of the same loss, and nothing else.
"""

from collections.abc import Callable

from ..methods import METHODS, Method, Task
from .epochs import steady
from .measure import Column
from .passes import Passes

_PASSES: dict[str, Callable[[Task], Method]] = {
    "SGD": METHODS["SGD"],
    "SAM": METHODS["SAM"],
    "passes of ESAM": lambda task: Passes(task, "weights", "forward", "half"),
    "SAM on half": lambda task: Passes(task, "forward", "half", sam=True),
    "passes of MESA": lambda task: Passes(task, "whole", "other", loss="term"),
    "SGD with a term": lambda task: Passes(task, "whole", loss="term"),
    "weighted SGD": lambda task: Passes(task, "whole", loss="weighted"),
}
_MIX = ("SGD", "SAM")
_IDEALS: dict[str, tuple[str, ...]] = {
    "SAM-5": _MIX,
    "RST": _MIX,
    "G-RST": _MIX,
    "AE-SAM": _MIX,
    "LookSAM-5": _MIX,
    "ESAM": ("passes of ESAM",),
    "K-SAM": ("SAM on half",),
    "Momentum-SAM": ("SGD",),
    "SAF": ("SGD with a term",),
    "MESA": ("passes of MESA",),
    "SGD+Info": ("weighted SGD",),
}
_NOTES = {  # what a method does beside its passes
    "LookSAM-5": "the norm of the gradient in every step, the projection in every fifth",
    "ESAM": "two choices, of tensors and of samples, and the copy of the weights",
    "Momentum-SAM": "the norm of the momentum, the copy of the weights and their way back",
    "SAF": "the table is written and read",
    "MESA": "the average is updated",
    "SGD+Info": "weights and scores are looked up; the plan of an epoch is shared among 7 to 8 steps here",
}
FAMILY = {name: Column(make, row=False) for name, make in _PASSES.items()} | {
    name: Column(steady(name), ideal, note=_NOTES.get(name)) for name, ideal in _IDEALS.items()
}
