"""What is said of a result over seeds."""

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation; of a single value only that."""
    text = f"{round(mean(values), 2) + 0.0:{sign}.2f}"  # no minus before 0.00
    return f"{text} ± {stdev(values):.2f}" if len(values) > 1 else text


def paired(differences: Sequence[float]) -> str:
    """Their spread, and how many are above 0."""
    return f"{spread(differences, '+')} ({sum(d > 0 for d in differences)} of {len(differences)})"


def standard_errors(values: Sequence[float]) -> float:
    """How many the mean is away from 0."""
    error = stdev(values) / sqrt(len(values))
    return mean(values) / error if error else 0.0
