"""The papers' tables: every row is accounted for, trained with its settings, shown beside what is printed."""

import json
from collections import Counter

import pytest

from benchmarks.data import write
from benchmarks.methods import METHODS
from benchmarks.networks import NETWORKS
from benchmarks.papers import __main__, published, show
from benchmarks.papers.jobs import FASHION, jobs


def test_every_row_of_eleven_tables_is_there():
    assert len(published.tables()) == 11
    assert sum(len(list(published.rows(table))) for table in published.tables()) == 213
    quoted = {row.method for table in published.tables() for row in published.rows(table) if row.footnote}
    assert quoted == {"ESAM", "SAF", "MESA", "K-SAM", "G-RST", "AE-SAM"}


@pytest.mark.parametrize("table", [*published.tables(), FASHION])
def test_every_row_is_a_job_of_a_method_and_a_network_that_are_there(table):
    for row, todo in jobs(table, seeds=2):
        assert [job.seed for job in todo] == [0, 1]
        for job in todo:
            poses = job.dataset == "MPII"
            assert job.method in METHODS and (poses or job.network in NETWORKS), row
            epochs = 10 if table == FASHION else 210 if poses else 200
            assert (job.epochs, job.batch_size) == (epochs, 64 if poses else 128)


def one(table, method, network, dataset, **settings):
    for row, (job,) in jobs(table, seeds=1):
        if (row.method, row.network, row.dataset) == (method, network, dataset) and row.settings == settings:
            return job
    raise AssertionError("no such row")


def test_settings_are_the_papers():
    esam = one("ausam-2", "ESAM", "ResNet-18", "CIFAR-10")
    assert esam.settings == {"beta": 0.6, "gamma": 0.5}
    assert (esam.learning_rate, esam.weight_decay, esam.rho) == (0.05, 1e-3, 0.05)
    pyramid = one("vsam-3", "vSAM", "PyramidNet-110", "CIFAR-100")
    assert pyramid.settings == {"alpha": 0.13, "gamma": 0.9}
    assert (pyramid.weight_decay, pyramid.rho) == (5e-4, 0.2)
    ausam = one("ausam-2", "AUSAM-0.4", "PyramidNet-110", "CIFAR-10")
    assert ausam.settings == {"s_min": 0.1, "s_max": 1.0, "warmup_epochs": 30}
    assert one("ausam-2", "AUSAM-0.4", "ResNet-18", "CIFAR-10").settings["s_max"] == 0.5
    assert one("vsam-1", "vSAM", "WideResNet-28-10", "CIFAR-100", alpha=0.2).settings["alpha"] == 0.2
    assert one("vsam-4", "vSAM-A", "ResNet-18", "CIFAR-10").settings == {"alpha": 0.1}
    saf = one("vsam-3", "SAF", "ResNet-18", "CIFAR-10").settings
    assert saf == {"lam": 0.3, "tau": 5, "start_epoch": 5, "delay": 3}
    lsq = one("vsam-5", "LSQ+vSAM", "ResNet-18", "CIFAR-10")
    assert (lsq.method, lsq.quantiser, lsq.network) == ("vSAM", "LSQ", "ResNet-18, ImageNet stem")
    assert lsq.starts_from == one("vsam-5", "Full prec.", "ResNet-18", "CIFAR-10").key


def test_in_short_runs_ranges_and_rates_are_in_proportion():
    rows = {row.method: todo for row, todo in jobs("ausam-2", seeds=1, epochs=20)}
    assert rows["AUSAM-0.5"][0].settings["warmup_epochs"] == 3
    rows = {row.method: todo for row, todo in jobs("vsam-3", seeds=1, epochs=20)}
    assert rows["vSAM"][0].settings["initial_rate"] == 0.34


def test_jobs_that_differ_have_files_of_their_own():
    keys: dict[str, object] = {}
    for table in published.tables():
        for made in (False, True):
            for _, todo in jobs(table, seeds=2, made=made):
                for job in todo:
                    assert keys.setdefault(job.key, job) == job


@pytest.mark.parametrize(
    ("method", "limit"),
    [("SGD", 200), ("SAM", 100), ("SAM-5", 166.7), ("SAM-10", 181.8), ("LookSAM-5", 166.7), ("SAF", 200),
     ("MESA", 150), ("K-SAM", 150), ("AUSAM-0.4", 250), ("AUSAM-0.6", 166.7)],
)  # fmt: skip
def test_limits_of_speed(method, limit):
    rows = [r for t in ("ausam-2", "vsam-3") for r in published.rows(t) if r.method == method]
    assert rows and all(show.limit(row) == limit for row in rows)


def test_the_list_names_every_table(capsys):
    __main__.main(["list"])
    printed = capsys.readouterr().out
    assert all(table in printed for table in published.tables())
    assert "213 rows of 11 tables" in printed


@pytest.mark.parametrize("there", [(), ("CIFAR-10", "Tiny-ImageNet", "MPII")])
@pytest.mark.parametrize("timm", [False, True])
def test_the_list_accounts_for_every_row(there, timm, tmp_path, monkeypatch):
    """Counted by hand from the papers: 52 quoted rows, all on CIFAR; 3 of poses; 12 on Tiny-ImageNet."""
    monkeypatch.setattr(__main__, "find_spec", lambda name: timm or None)
    for name in there:
        (tmp_path / name).mkdir()
    states = Counter(
        __main__.account(row, tmp_path) for table in published.tables() for row in published.rows(table)
    )
    can, quoted = (
        "can be trained: all that it needs is there",
        "quoted from another paper; to train it as well: ",
    )
    missing = ([] if "MPII" in there else ["MPII"]) + ([] if timm else ["HRNet-W32 of timm"])
    expected = Counter()
    for own, quotes, name in ((67, 26, "CIFAR-10"), (79, 26, "CIFAR-100"), (12, 0, "Tiny-ImageNet")):
        state = can if name in there else f"needs {name}"
        expected += Counter({state: own, quoted + state: quotes})
    expected[f"needs {' and '.join(missing)}" if missing else can] += 3
    assert states == +expected and sum(states.values()) == 213


MADE = {
    "ausam-1": ["--networks", "ResNet-18"],
    "ausam-5": [],
    "ausam-4": [],
    "vsam-4": ["--datasets", "CIFAR-10"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("CIFAR-10", "CIFAR-100"):
        write(name, folder / name, samples=96)
    write("MPII", folder / "MPII")
    return folder


@pytest.mark.parametrize("table", MADE)
def test_a_table_from_made_data(table, data, tmp_path, capsys):
    options = [table, "--made", "--seeds", "1", *MADE[table], "--out", str(tmp_path)]
    __main__.main(["run", *options, "--data", str(data)])
    first = capsys.readouterr().out
    __main__.main(["show", *options])
    assert capsys.readouterr().out == first  # and nothing was trained twice
    lines = json.loads((tmp_path / f"{table}.json").read_text(encoding="utf-8"))
    assert lines and all(line["seeds"] == [0] for line in lines)
    for line in lines:
        assert all(cell in first for cell in line["printed"].values())
        assert f"{line['last'][0]:.2f} | " in first
        assert 0 < line["backward"][0] <= line["forward"][0] and line["seconds"][0] > 0
    assert (tmp_path / f"{table}.png").read_bytes().startswith(b"\x89PNG")


def test_missing_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="CIFAR-100"):
        __main__.main(
            ["run", "ausam-1", "--seeds", "1", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
        )
