"""Tests stay independent of each other: what two files share is a helper, not a test module."""

import re

from helpers import ROOT

TESTS = ROOT / "tests"


def test_no_test_module_is_imported():
    imported = re.compile(r"^\s*(from|import)\s+([\w.]+\.)?test_\w+", re.MULTILINE)
    found = [f for f in TESTS.rglob("*.py") if imported.search(f.read_text(encoding="utf-8"))]
    assert not found


def test_every_name_of_a_test_module_is_given_once():
    """pytest imports each as a module of its file's name."""
    names = [f.name for f in TESTS.rglob("test_*.py")]
    assert len(names) > 100 and len(set(names)) == len(names)
