"""The emulation of CUDA that other tests run the kernels on: correct kernels (emulation/faults.cu) pass under
every order of threads and blocks, and each of the mistakes in them shows."""

import subprocess
import sys
from itertools import accumulate

import pytest
from emulation.compiling import HERE, build_kernels, sanitized_environment
from emulation.library import SCHEDULES, Library

FAULTS = HERE / "faults.cu"
VALUES = [i * 7919 % 1009 for i in range(512)]


@pytest.fixture(scope="module")
def folder(request):
    return request.config.cache.mkdir("emulation")


@pytest.fixture(scope="module")
def plain(folder):
    return Library(build_kernels(FAULTS, folder))


def results(library, kernel, data=VALUES, **kwargs):
    """What comes out under every schedule."""
    out = []
    for schedule in SCHEDULES:
        library.schedule(*schedule)
        out.append(library.run(kernel, data, **kwargs))
    return out


def same(lists):
    return all(x == lists[0] for x in lists)


def test_tree_sum(plain):
    assert {out[0] for out in results(plain, "tree_sum")} == {sum(VALUES)}
    assert not same(results(plain, "tree_sum", broken=True))


def test_scan(plain):
    out = results(plain, "scan")
    assert same(out) and out[0] == list(accumulate(VALUES))
    assert not same(results(plain, "scan", broken=True))


def test_bitonic_sort(plain):
    data = [i * 7919 % 10007 for i in range(1024)]
    kwargs = {"threads": 512, "shared": 4096}
    out = results(plain, "bitonic_sort", data, **kwargs)
    assert same(out) and out[0] == sorted(data)
    assert not same(results(plain, "bitonic_sort", data, broken=True, **kwargs))


def test_unwritten_shared_memory(plain):
    assert same(results(plain, "unwritten_shared"))
    out = results(plain, "unwritten_shared", broken=True)
    assert len({x[7] for x in out}) == len(SCHEDULES)
    assert all(x[:7] + x[8:] == [1] * 511 for x in out)


def test_order_of_blocks(plain):
    assert same(results(plain, "across_blocks", blocks=8))
    assert not same(results(plain, "across_blocks", blocks=8, broken=True))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("divergent_barrier", "barrier not .* block 0: 96 of 512 wait at .*, 416 of 512 wait at FILE"),
        ("early_return", "barrier not .* block 0: 96 of 512 wait at FILE .*, 416 of 512 have returned"),
        ("lane_missing", "warp operation .* block 0: 256 of 512 wait at FILE .__shfl_xor_sync.*256 of"),
        ("not_in_own_mask", "lane .* is not in its own mask in block 0 at FILE .__any_sync"),
        ("reads_beyond_mask", "lane .* reads lane 16, which is not in the mask, in block 0 at FILE"),
        ("outside_shared", "block 0 wrote beyond its 2048 bytes of shared memory"),
    ],
)
def test_errors(plain, kernel, message):
    expected = results(plain, kernel)
    assert same(expected)
    for schedule in SCHEDULES:
        plain.schedule(*schedule)
        with pytest.raises(RuntimeError, match=message.replace("FILE", r"faults\.cu:\d+")):
            plain.run(kernel, VALUES, broken=True)
    assert results(plain, kernel) == expected  # and the process goes on


def test_launch_limits(plain):
    plain.run("early_return", [0] * 1024)
    with pytest.raises(RuntimeError, match="1025 threads"):
        plain.run("early_return", [0] * 1025)
    with pytest.raises(RuntimeError, match="0 threads"):
        plain.run("early_return", [0], threads=0)
    with pytest.raises(RuntimeError, match="0 blocks"):
        plain.run("early_return", [0], blocks=0, threads=1)
    with pytest.raises(RuntimeError, match="49156 bytes of shared memory, allowed 49152"):
        plain.run("tree_sum", VALUES, shared=49156)
    assert plain.c.opt_in(50000) == 0
    assert plain.run("tree_sum", VALUES, shared=50000)[0] == sum(VALUES)
    with pytest.raises(RuntimeError, match="50001 bytes"):
        plain.run("tree_sum", VALUES, shared=50001)
    assert plain.c.opt_in(227 * 1024) == 0
    assert plain.c.opt_in(227 * 1024 + 1) != 0


_SANITIZED = """
import sys
from emulation.library import SCHEDULES, Library
library, kernel, broken = Library(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
for schedule in SCHEDULES:
    library.schedule(*schedule)
    library.run(kernel, [5] * 128, broken=broken)
try:
    library.run("early_return", [5] * 128, broken=True)
except RuntimeError:
    library.run("early_return", [5] * 128)
    print("done")
"""


@pytest.fixture(scope="module")
def races(folder):
    return Library(build_kernels(FAULTS, folder, "races"))


@pytest.mark.parametrize(
    ("kernel", "memory"),
    [
        ("tree_sum", "shared memory"),
        ("scan", "shared memory"),
        ("bitonic_sort", "shared memory"),
        ("unwritten_shared", "shared memory that nothing has been written to"),
        ("within_warp", "shared memory"),
        ("count_threads", "global memory"),
        ("one_place", "global memory"),
        ("across_blocks", "global memory"),
    ],
)
def test_races(plain, races, kernel, memory):
    """Found under every schedule, also where no schedule gives a wrong result."""
    kwargs = {"blocks": 8} if kernel == "across_blocks" else {}
    if kernel == "bitonic_sort":
        kwargs = {"threads": 256, "shared": 2048}
    assert results(races, kernel, **kwargs) == results(plain, kernel, **kwargs)
    for schedule in SCHEDULES:
        races.schedule(*schedule)
        with pytest.raises(RuntimeError, match=rf"^faults.cu:\d+: thread .* (reads|writes) {memory}"):
            races.run(kernel, VALUES, broken=True, **kwargs)


def test_no_schedule_shows_a_race_of_one_statement(plain):
    assert same(results(plain, "count_threads", broken=True))  # so that it takes the test above


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("outside_global", "heap-buffer-overflow"),
        ("outside_shared", "use-after-poison"),
        ("misaligned", "misaligned address"),
    ],
)
def test_sanitizers(folder, kernel, message):
    library = build_kernels(FAULTS, folder, "asan")

    def run(broken):
        command = [sys.executable, "-c", _SANITIZED, library, kernel, str(broken)]
        env = sanitized_environment()
        return subprocess.run(command, env=env, cwd=HERE.parent, capture_output=True, text=True, check=False)

    correct, broken = run(False), run(True)
    assert (correct.returncode, correct.stdout, correct.stderr) == (0, "done\n", "")
    assert broken.returncode != 0 and message in broken.stderr
