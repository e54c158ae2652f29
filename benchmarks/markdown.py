"""Markdown: tables that also read well as text, and pages with blocks that are filled from results.

A block is what is between ``<!-- NAME -->`` and ``<!-- end -->``, each on a line of its own.
"""

import re
from collections.abc import Mapping, Sequence

Cells = Sequence[Sequence[str]]
BLOCK = re.compile(r"(<!-- (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, blocks: Mapping[str, str]) -> str:
    """The page with its blocks up to date."""
    return BLOCK.sub(lambda m: m[1] + blocks[m["name"]] + m[3], page)


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
