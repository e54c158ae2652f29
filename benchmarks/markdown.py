"""Markdown tables that also read well as text."""

from collections.abc import Sequence

Cells = Sequence[Sequence[str]]


def table(cells: Cells, left: int = 2) -> str:
    """The head is the first line; columns after the first ``left`` are numbers."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        texts = [cell.ljust(width) for cell, width in zip(line[:left], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(line[left:], widths[left:], strict=True)]
        lines.append(f"| {' | '.join(texts + numbers)} |")
    rules = ["-" * (w + 2) for w in widths[:left]] + ["-" * (w + 1) + ":" for w in widths[left:]]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]]) + "\n"
