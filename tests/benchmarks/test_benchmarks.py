"""The benchmarks: that columns take turns, that the gate catches what it is for, that no table is stale."""

import json
import re
import time
from math import prod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("matplotlib")

from benchmarks import harness, report, tables
from benchmarks.operators import gate
from benchmarks.operators.case import measure
from benchmarks.operators.cases import CASES
from benchmarks.operators.shapes import LISTS


def fixed(seconds):
    return lambda: time.sleep(seconds)


def made(suite="operators", ratio=2.0, **arguments):
    """A row whose second column takes `ratio` times as long as the first."""
    samples = {"native": [1e-3, 2e-3, 4e-3], "eager": [1e-3 * ratio, 2e-3 * ratio, 4e-3 * ratio]}
    return harness.row(suite, "psf_reuse_", "100", samples, **arguments)


def test_columns_take_turns_and_every_other_round_goes_backwards():
    calls = []
    harness.compare({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=4, min_time=0)
    assert "".join(calls[6:]) == "abccbaabccba"  # after two calls each to warm up


def test_calls_fill_the_least_time_of_a_sample():
    calls = 0

    def count():
        nonlocal calls
        calls += 1

    samples = harness.compare({"count": count}, rounds=3, min_time=5e-3)
    assert calls > 3 * 1000
    assert len(samples["count"]) == 3 and max(samples["count"]) < 1e-4  # seconds per call, not per sample


def test_time_that_is_up_ends_the_rounds_but_leaves_six():
    samples = harness.compare({"slow": fixed(0.02)}, rounds=100, seconds=0.01)
    assert len(samples["slow"]) == 6


def test_on_cuda_events_time_each_call_with_a_cold_cache(monkeypatch, tmp_path):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def elapsed_time(self, end):
            return 2.0  # milliseconds

    class Buffer:
        def __init__(self, size, device):
            assert size * 4 > 2 * (50 << 20) and device == "cuda"

        def sum(self):
            log.append("read")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=50 << 20)
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch, "zeros", Buffer)
    samples = harness.compare({"f": lambda: log.append("call")}, rounds=2, min_time=5e-3, device="cuda")
    assert samples == {"f": [2e-3, 2e-3]}
    assert log[-14:] == ["synchronize", *["read", "event", "call", "event"] * 3, "synchronize"]
    assert harness.result_file("cuda", tmp_path) == tmp_path / "nvidia-h200.json"


def test_ratios_are_those_within_a_round():
    row = made(ratio=3.0, target=2.0)
    assert row["ratios"] == {
        "eager": {"median": 3.0, "q1": 3.0, "q3": 3.0}
    }  # though the times differ fourfold
    assert row["columns"]["native"] == {"median": 2e-3, "q1": 1.5e-3, "q3": 3e-3, "n": 3}
    assert row["against"] == "eager"


def test_rows_are_added_one_by_one_and_a_file_is_never_half_written(tmp_path, monkeypatch):
    path = harness.add([made(), made("steps")], folder=tmp_path)
    harness.add([{**made(ratio=5.0), "size": "200"}], folder=tmp_path)
    harness.add([made(ratio=3.0)], folder=tmp_path)
    suites = json.loads(path.read_text())
    found = [(row["size"], row["ratios"]["eager"]["median"]) for row in suites["operators"]["rows"]]
    assert found == [("100", 3.0), ("200", 5.0)] and len(suites["steps"]["rows"]) == 1
    before, write = path.read_text(), Path.write_text

    def killed(self, text, **options):
        write(self, text[: len(text) // 2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        harness.add([made(ratio=7.0)], folder=tmp_path)
    assert path.read_text() == before


def test_a_suite_that_runs_again_replaces_its_rows_alone(tmp_path):
    harness.save([made("operators"), made("steps")], folder=tmp_path)
    path = harness.save([made("operators", ratio=5.0)], folder=tmp_path)
    suites = json.loads(path.read_text())
    assert [row["ratios"]["eager"]["median"] for row in suites["operators"]["rows"]] == [5.0]
    assert [row["ratios"]["eager"]["median"] for row in suites["steps"]["rows"]] == [2.0]
    assert suites["steps"]["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("network", "count", "parameters"),
    [
        ("ResNet-18", 62, 11_689_512),
        ("WideResNet-28-10", 80, 36_479_194),
        ("ResNet-50", 161, 25_557_032),
        ("ViT-B", 152, 86_567_656),
    ],
)
def test_lists_have_the_published_numbers_of_parameters(network, count, parameters):
    assert (len(LISTS[network]), sum(map(prod, LISTS[network]))) == (count, parameters)


def test_every_operator_has_cases_and_each_case_its_name():
    operators = {
        n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("ausam_ext::")
    }
    assert {case.what.split()[0] for case in CASES} == operators
    assert len(set(map(str, CASES))) == len(CASES)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("size", ["128", "4,096", "10,000 rows of 16"])
def test_the_rival_of_subset_sample_chooses_the_same(size):
    case = next(case for case in CASES if str(case) == f"subset_sample, {size}")
    columns = case.columns()
    assert torch.equal(columns["topk"](), columns["native"]())


def test_the_gate_holds_a_ratio_for_each_of_its_cases():
    recorded = json.loads(gate.RECORDED.read_text(encoding="utf-8"))
    assert set(recorded) == {str(case) for case in CASES if case.gated}
    assert min(recorded.values()) > 0.9


@pytest.fixture
def honest(threads):
    threads(1)
    return next(case for case in CASES if str(case) == "sliced_variance, N = 50, M = 5")


class Slowed:
    """A case whose native kernel takes three times as long."""

    def __init__(self, case):
        self.case = case

    def __str__(self):
        return str(self.case)

    def columns(self, **options):
        columns = self.case.columns(**options)
        native = columns["native"]
        return {**columns, "native": lambda: (native(), native(), native())}


def test_the_gate_catches_a_planted_regression_and_passes_the_kernel_as_it_is(honest, capsys):
    recorded = {str(honest): gate.ratio(honest, 0.3)}
    assert gate.failures([honest], recorded, seconds=0.3) == []
    (line,) = gate.failures([Slowed(honest)], recorded, seconds=0.3)
    assert line.startswith("sliced_variance, N = 50, M = 5: ") and line.endswith("second try")
    assert line in capsys.readouterr().out


def test_the_gate_gives_a_case_a_second_and_longer_try(monkeypatch, honest):
    tries = []

    def ratio(case, seconds):
        tries.append(seconds)
        return 1.0 if len(tries) == 1 else 7.6

    monkeypatch.setattr(gate, "ratio", ratio)
    assert gate.failures([honest], {str(honest): 10.0}, seconds=2.0) == []
    assert tries == [2.0, 6.0]


def test_the_gate_ends_with_an_error_that_names_what_lost(monkeypatch, tmp_path, capsys, threads):
    threads(1)  # puts back what main() sets
    monkeypatch.setattr(gate, "ratio", lambda case, seconds: 4.0)
    recorded = tmp_path / "gate.json"
    gate.main(["--record"], recorded)
    gate.main([], recorded)
    monkeypatch.setattr(gate, "ratio", lambda case, seconds: 4.0 if case.what != "restore_" else 2.9)
    with pytest.raises(SystemExit) as stopped:
        gate.main([], recorded)
    assert stopped.value.code == 1
    assert "restore_, ResNet-18: 2.90x eager, at least 3.00, second try" in capsys.readouterr().err


def test_readme_shows_the_figures_of_benchmarks_results():
    shown = report.BLOCK.search(report.PAGE.read_text(encoding="utf-8"))
    assert shown[0] == shown[1] + report.block() + shown[2], "run python -m benchmarks.report"


def test_readme_block_has_the_rows_with_a_target_and_a_line_for_each_that_misses_it(tmp_path):
    met, missed = made(ratio=2.5, target=2.0), made(ratio=1.5, target=2.0, note="Memory is full.")
    harness.save([made("memory"), met, missed, made(ratio=7.0)], folder=tmp_path)
    block = report.block(tmp_path)
    assert "2.50 (2.50 to 2.50)" in block and "7.00" not in block
    assert list(tables.machines(tmp_path)["cpu"]) == ["operators", "memory"]
    assert re.findall("^- .*$", block, re.MULTILINE) == [
        "- psf_reuse_, 100: 1.50 (1.50 to 1.50) times as fast as eager (target 2): Memory is full."
    ]


def test_what_pytorch_does_faster_is_said_without_a_target_too():
    (line,) = tables.losses([made(ratio=0.5), made(ratio=1.5), made("scaling", ratio=0.5)])
    assert line == "psf_reuse_, 100: 0.50 (0.50 to 0.50) times as fast as eager: not explained yet"


def test_on_a_gpu_the_table_has_the_column_of_the_target_and_no_reason_of_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "result_file", lambda device, folder: folder / "nvidia-h200.json")
    cpu = harness.machine()
    monkeypatch.setattr(harness, "machine", lambda device: {**cpu, "gpu": "NVIDIA H200", "cuda": "13.0"})
    samples = {"native": [1e-3] * 3, "eager": [2e-3] * 3, "copy": [0.8e-3] * 3, "_foreach_add_": [0.9e-3] * 3}
    rows = [
        harness.row("operators", "perturb_", "ResNet-50", samples, against="copy", target=0.85),
        harness.row("operators", "psf_reuse_", "ResNet-50", samples, against="_foreach_add_", target=0.95),
    ]
    harness.save(rows, "cuda", tmp_path)
    block = report.block(tmp_path)
    head = next(line for line in block.splitlines() if line.startswith("| What"))
    assert "copy / this" in head and "_foreach_add_ / this" in head
    assert re.findall("^- (.*)$", block, re.MULTILINE) == [
        "perturb_, ResNet-50: 0.80 (0.80 to 0.80) times as fast as copy (target 0.85): not explained yet",
        "perturb_, ResNet-50: 0.90 (0.90 to 0.90) times as fast as _foreach_add_: not explained yet",
        "psf_reuse_, ResNet-50: 0.90 (0.90 to 0.90) times as fast as _foreach_add_ (target 0.95): "
        "not explained yet",
    ]


def test_report_is_one_file_with_a_picture_for_each_suite(tmp_path):
    rows = [made(bytes=800, target=2.0)]
    for suite in ("steps", "scaling", "peers", "another"):
        rows += [made(suite), made(suite, ratio=1 / 3, images_per_second=1234.5)]
    rows[0]["size"] = "ResNet-18"
    rows[0]["columns"]["copy"] = rows[0]["columns"]["eager"]
    rows.append({**made("memory", bytes=4096), "columns": {}, "ratios": {"limit": {"median": 1.25}}})
    harness.save(rows, folder=tmp_path)
    report.write(tmp_path / "report", tmp_path)
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("<h2>") == 6
    assert all(cell in page for cell in ("<td>1234.5</td>", "<td>4,096</td>", "<td>1.25</td>"))
    text = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    for picture in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (tmp_path / "report" / picture).read_bytes().startswith(b"\x89PNG")


def test_a_row_says_how_far_the_draw_alone_bounds_the_ratio(threads):
    threads(1)
    case = next(case for case in CASES if str(case) == "subset_sample with its draw, 128")
    row = measure(case, rounds=9, seconds=0.5)
    assert list(row["columns"]) == ["native", "torch.multinomial", "part: exponential_", "copy"]
    assert (row["against"], row["target"], row["bytes"]) == ("torch.multinomial", 2, 128 * 12 + 64 * 8)
    bound = float(re.search(r"the ratio would be ([\d.]+)$", row["note"])[1])
    assert row["ratios"]["torch.multinomial"]["median"] < bound
