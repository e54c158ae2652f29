"""The code of the documents runs, page by page, unchanged; their links lead somewhere."""

import re
import sys
from types import ModuleType

import pytest
from helpers import ROOT

PAGES = sorted(ROOT.glob("docs/*.md"))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs(page, monkeypatch, tmp_path, dynamo_unharmed):
    """Blocks marked ```python, all in one namespace; what cannot run by itself (torchrun, a GPU) is ```py."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType(page.stem)
    monkeypatch.setitem(sys.modules, page.stem, module)  # where Dynamo looks for it
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, page.name, "exec"), vars(module))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_files_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


FEATURES = (ROOT / "docs/features.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("held_by", re.findall(r"`([\w/]+\.py::\w+)`", FEATURES))
def test_features_are_held_by_tests_that_exist(held_by):
    path, name = held_by.split("::")
    source = (ROOT / "tests" / path).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(", source, re.MULTILINE), held_by


def test_every_feature_that_is_there_names_its_test():
    rows = [line.split(" | ") for line in FEATURES.splitlines() if re.match(r"\| [\w`]", line)][1:]
    assert len(rows) > 20
    for row in rows:
        assert not row[1].startswith("yes") or re.search(r"`[\w/.]+", row[2]), row[0]
