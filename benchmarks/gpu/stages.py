"""What `make gpu` does, in order: first what the rest rests on, then what is least dear to lose last."""

import shutil
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "build" / "peers"
NAMES = ("sampling", "statistics", "tensor_lists", "operator_contract", "bad_input")
OPERATORS = [f"tests/ops/test_{name}.py" for name in NAMES]
ON_DEVICE, GRAPHS = "tests/device/test_device_operators.py", "tests/device/test_device_graphs.py"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
ERRORS_FOUND = 86  # the exit status that compute-sanitizer is asked for
FEW_THREADS = {"OMP_NUM_THREADS": "2"}
FOR_THE_REPORT = 50.0  # seconds that the timings leave: to the last one, which shows drift, and to the report

# In a command: how many seconds the stage may take, less some to end in; where its parts are written down;
# where the figures go, and the report.
SECONDS, JOURNAL, RESULTS, REPORT = "{seconds}", "{journal}", "{results}", "{report}"


class Stage(NamedTuple):
    name: str
    command: list[str]
    seconds: float  # at most
    kind: str = ""  # "checks" or "timings"; those without a kind belong to both
    environment: dict[str, str] = {}  # noqa: RUF012
    must_contain: str = ""  # else the log shows that nothing was checked
    essential: bool = False  # nothing is done after it has failed
    beside: bool = False  # two of those that follow each other run at a time
    leaves: float = 0.0  # of the time for everything, to the stages after it

    @property
    def in_parts(self) -> bool:
        """Whether another process goes on if one has died."""
        return JOURNAL in self.command


def pytest(*options: str, each: int = 60) -> list[str]:
    """pytest with the plugins that the tests need, whatever else is installed."""
    plugins = ("-p", "_hypothesis_pytestplugin", "-p", "benchmarks.gpu.plugin")
    parts = ("--journal", JOURNAL, "--each", str(each))
    return [sys.executable, "-m", "pytest", "-q", "--tb=short", *plugins, *parts, *options]


def suite(name: str, each: int, *arguments: str) -> list[str]:
    options = ("--seconds", SECONDS, "--each", str(each), "--journal", JOURNAL, "--results", RESULTS)
    return [sys.executable, "-m", f"benchmarks.{name}", *arguments, *options]


def sanitizer() -> str:
    """compute-sanitizer, on the PATH or beside nvcc."""
    nvcc = shutil.which("nvcc")
    beside = Path(nvcc).resolve().parent / "compute-sanitizer" if nvcc else None
    default = Path("/usr/local/cuda/bin/compute-sanitizer")
    found = [str(p) for p in (beside, default) if p is not None and p.exists()]
    return shutil.which("compute-sanitizer") or (found[0] if found else "compute-sanitizer")


def stages() -> list[Stage]:
    on_gpu = ("--backend=cuda", "-k", "cuda")
    # Left out: what needs other packages or a network, or builds.
    others = ("benchmarks", "cuda_build", "docs", "emulation", "packaging", "sanitized")
    others += ("examples", "integrations/frameworks")
    whole = ["tests", *(f"--ignore=tests/{folder}" for folder in others), f"--ignore={GRAPHS}"]
    python = sys.executable
    return [
        Stage(
            "build",
            [python, "setup.py", "build_ext", "--inplace"],
            180,
            environment={"FORCE_CUDA": "1"},
            essential=True,
        ),
        Stage("loaded", [python, "-m", "benchmarks.gpu.loaded"], 90, essential=True),
        Stage(
            "tests",
            [*pytest(*on_gpu, "--continue-on-collection-errors", each=90), *whole],
            200,
            "checks",
            FEW_THREADS,
        ),
        # A capture that fails can spoil what follows: in a process of its own.
        Stage("graphs", [*pytest(*on_gpu), GRAPHS], 90, "checks", FEW_THREADS),
        Stage("begin", suite("gpu.drift", 30, "begin"), 60, "timings"),
        *(
            Stage(name, suite(module, each), seconds, "timings", leaves=FOR_THE_REPORT)
            for name, module, each, seconds in (
                ("steps", "steps", 90, 200),
                ("operators", "operators", 20, 90),
                ("bandwidth", "operators.bandwidth", 10, 50),
                ("precision", "steps.precision", 60, 100),
                ("memory", "steps.memory", 30, 50),
                # The others' packages travel with the tree, or not at all: there is no network.
                *([("peers", "steps.peers", 40, 60)] if PEERS.exists() else []),
                ("scaling", "steps.scaling", 25, 50),
            )
        ),
        Stage("end", suite("gpu.drift", 30, "end"), 60, "timings"),
        Stage(
            "report",
            [python, "-m", "benchmarks.report", "--results", RESULTS, "--output", REPORT],
            60,
            "timings",
        ),
        Stage(
            "no synchronisation",
            [*pytest("--backend=cuda-no-sync", "-k", "cuda"), *OPERATORS],
            90,
            "checks",
            FEW_THREADS,
        ),
        *(
            Stage(
                tool,
                [
                    *(sanitizer(), "--tool", tool, "--error-exitcode", str(ERRORS_FOUND)),
                    *("--target-processes", "application-only", "--print-limit", "20"),
                    # torch makes calls that fail, and handles it.
                    *(["--report-api-errors", "no"] if tool == "memcheck" else []),
                    # opcheck and streams need torch's allocator, and no kernel of ours more than the others.
                    *pytest("--backend=cuda", "-k", "cuda and not opcheck and not current_stream", each=120),
                    *OPERATORS,
                    ON_DEVICE,
                ],
                300,
                "checks",
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", **FEW_THREADS},
                "SUMMARY: ",
                beside=True,
            )
            for tool in TOOLS
        ),
    ]
