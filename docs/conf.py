"""The documentation site: `make docs`."""

import re
import sys
from inspect import getdoc
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import ausam_ext  # noqa: E402

project = "ausam_ext"
author = copyright = "The ausam_ext authors"
version = release = ausam_ext.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "ausam_ext"
html_math_renderer = "mathml"  # which browsers show without a script from elsewhere
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_mock_imports = ["lightning", "transformers"]
napoleon_use_rtype = False

# An entry of "Args:": names and what is said of them, up to the next entry.
ENTRY = re.compile(r"^    (?P<names>[\w, *]+): (?P<text>.*(?:\n {8,}.*)*)", re.MULTILINE)
ELSEWHERE = re.compile(r"as for :(?:class|meth):`(?P<name>[\w.]+)`\.$")
OPTIONS = "adaptive, params, maximize, groups, scaler"  # what `**options` are


def entries(documented: object) -> dict[str, str]:
    """What a docstring says of each argument."""
    text = getdoc(documented) or ""
    arguments = re.search(r"^Args:\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
    found = {}
    for entry in ENTRY.finditer(arguments[1]) if arguments else ():
        found |= dict.fromkeys(re.findall(r"\w+", entry["names"]), entry["text"])
    return found


def expand(app, what, name, documented, options, lines) -> None:
    """Replaces "as for SAM" by what is said there: the page shows every argument where it is used."""
    text = "\n".join(lines)

    def own(entry: re.Match[str]) -> str:
        elsewhere = ELSEWHERE.search(entry["text"])
        if elsewhere is None:
            return entry[0]
        there = ausam_ext
        for part in elsewhere["name"].removeprefix("ausam_ext.").split("."):
            there = getattr(there, part)
        names = re.findall(r"\w+", entry["names"].replace("options", OPTIONS))
        return "\n".join(f"    {n}: {entries(there)[n]}" for n in names)

    lines[:] = [*ENTRY.sub(own, text).splitlines(), ""]


def inline_math(translator, node) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(translator, node) -> None:
    equation = convert(node.astext(), display="block")
    # Room for what is taller than a line, or the theme draws a scroll bar.
    translator.body.append(f'<div style="padding: 0.8em 0">{equation}</div>')
    raise nodes.SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    # Before napoleon, which takes "Args:" apart.
    app.connect("autodoc-process-docstring", expand, priority=100)
