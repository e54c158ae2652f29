"""pytest plugin: writes down what became of each test as soon as it is known, as benchmarks/parts.py does.

A test that hangs, or that loses the GPU's context, ends the process; the next one leaves out what the journal
names. What pytest would say of a failed test at the end goes to the log at once.
"""

import faulthandler
import os
from pathlib import Path

import pytest

from ..journal import LOST, Journal, context_lost

LOG = os.fdopen(os.dup(2), "w")  # pytest captures what is written to the other one


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--journal", type=Path, required=True)
    parser.addoption("--each", type=float, required=True, help="seconds that a test may take")


def pytest_configure(config: pytest.Config) -> None:
    journal = Journal(config.getoption("--journal"))
    config.pluginmanager.register(Writer(journal, config.getoption("--each")), "gpu-journal")


class Writer:
    def __init__(self, journal: Journal, each: float) -> None:
        self.journal, self.each = journal, each
        self.outcome = ""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        known = [item for item in items if item.nodeid in self.journal.known]
        config.hook.pytest_deselected(items=known)
        items[:] = [item for item in items if item.nodeid not in self.journal.known]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.outcome = "passed"
        self.journal.begin(nodeid)
        faulthandler.dump_traceback_later(self.each, exit=True, file=LOG)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and self.outcome == "passed":
            self.outcome = "skipped"
        if report.failed:
            lines = report.longreprtext.strip().splitlines()
            self.outcome = f"{report.when}: {lines[-1][:300] if lines else 'failed'}"
            print(f"\n{report.nodeid}\n{report.longreprtext}", file=LOG, flush=True)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.journal.end(nodeid, self.outcome)
        if self.outcome not in ("passed", "skipped") and context_lost():
            print("the GPU's context is lost", file=LOG, flush=True)
            os._exit(LOST)


def pytest_unconfigure(config: pytest.Config) -> None:
    LOG.close()
