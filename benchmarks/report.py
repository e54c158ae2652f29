"""`python -m benchmarks.report`: what benchmarks/results holds, for readers.

Writes report.html (one file with everything in it), report.md and its pictures into a folder, and brings
docs/benchmarks.md up to date.
"""

import argparse
import html
import re
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from .figures import png
from .harness import RESULTS
from .plots import PICTURES
from .tables import TITLES, description, html_table, losses, machines, markdown, summary, table

PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"
BLOCK = re.compile(r"(<!-- benchmarks -->\n).*?(<!-- end of benchmarks -->)", re.DOTALL)
READING = (
    "Columns take turns in one process; medians over the rounds, with quartiles in brackets. 'x / this': how "
    "many times as long x takes, so that more is better. Copy: one that moves as many bytes. 'part': does a "
    "only a part of the work."
)
HEAD = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Benchmarks</title>'
STYLE = (
    "body{font:15px sans-serif;max-width:75em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "td,th{padding:.2em .6em;border-bottom:1px solid #ddd;text-align:right}img{max-width:100%}"
    "td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}"
)


def block(folder: Path = RESULTS) -> str:
    """What is between the page's markers."""
    parts = [summary(suites) for suites in machines(folder).values()]
    return "\n" + "\n".join(parts) + "\n" if parts else ""


def write(output: Path, folder: Path = RESULTS) -> None:
    """The report as ``report.html`` and ``report.md`` with its pictures."""
    output.mkdir(parents=True, exist_ok=True)
    md, page = [f"# Benchmarks\n\n{READING}\n"], [f"<h1>Benchmarks</h1><p>{html.escape(READING)}</p>"]
    for name, suites in machines(folder).items():
        for suite, content in suites.items():
            rows, title = content["rows"], f"{TITLES.get(suite, suite)}: {name}"
            md.append(f"## {title}\n\n{description(content['machine'])}\n")
            page.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(description(content['machine']))}</p>")
            for picture, draw in PICTURES.get(suite, {}).items():
                image = png(draw(rows))
                (output / f"{name}-{picture}.png").write_bytes(image)
                md.append(f"![{picture}]({name}-{picture}.png)\n")
                page.append(f'<img alt="{picture}" src="data:image/png;base64,{b64encode(image).decode()}">')
            md.append(markdown(table(rows)))
            page.append(html_table(table(rows)))
            if lost := losses(rows, "gpu" in content["machine"]):
                md.append("Where it loses:\n\n" + "".join(f"- {sentence}\n" for sentence in lost))
                items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in lost)
                page.append(f"<p>Where it loses:</p><ul>{items}</ul>")
    (output / "report.md").write_text("\n".join(md), encoding="utf-8")
    page = [HEAD, f"<style>{STYLE}</style>", *page, "</html>\n"]
    (output / "report.html").write_text("\n".join(page), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("bench-results"), help="folder (default: bench-results)"
    )
    parser.add_argument("--results", type=Path, help="read from here, and leave docs/benchmarks.md as it is")
    options = parser.parse_args(arguments)
    output = options.output
    if options.results:
        write(output, options.results)
        print(f"{output / 'report.html'} and {output / 'report.md'} are written.")
        return
    write(output)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda m: m[1] + block() + m[2], page), encoding="utf-8")
    print(f"{output / 'report.html'}, {output / 'report.md'} and {PAGE.name} are written.")


if __name__ == "__main__":
    main()
