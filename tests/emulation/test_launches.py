"""How many kernels each operator launches, and lists that lie on two devices: in the emulation of CUDA."""

import subprocess
import sys

import pytest
import torch
from emulation.calls import TABLE, caller, lists
from helpers import ROOT, exponential, like, same_bits, tensor_list
from torch.utils._python_dispatch import TorchDispatchMode

WEIGHTS = {"s_min": 0.1, "s_max": 1.0}


@pytest.fixture
def library(emulated):
    library = emulated("")
    yield library
    library.two_devices(False)
    library.scalars_on_host(False)


@pytest.fixture
def call(library):
    return caller(library)


def table():
    return torch.rand(50), torch.ones(50, dtype=torch.int32)


def subset_sample(call, *shape):
    call("subset_sample", torch.rand(shape), shape[-1] // 2, noise=exponential(*shape), **WEIGHTS)


def subset_weights(call, *shape):
    positions = torch.arange(shape[-1] // 2).expand(*shape[:-1], -1)
    call("subset_weights", torch.rand(shape), positions, exponential(*shape), **WEIGHTS)


def adlp_sample(call, *shape):
    index = torch.randint(0, 50, shape)
    call("adlp_sample", *table(), index, shape[-1] // 2, noise=exponential(*shape), **WEIGHTS)


def adlp_update_(call, n):
    call("adlp_update_", *table(), torch.randint(0, 50, (n,)), torch.rand(n), torch.rand(n))


def bounded(call, tensors):
    made = [[torch.randn(3) for _ in range(tensors)] for _ in range(2)]
    call("psf_reuse_", *made, torch.tensor(0.5), limit=torch.tensor(1e3))


MIXED = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("kernels", "operator", "arguments"),
    [
        (1, "dlp", (torch.rand(5000), torch.rand(5000))),
        (1, adlp_update_, (128,)),
        (1, adlp_update_, (5000,)),
        *((1, sample, (k,)) for sample in (subset_sample, adlp_sample) for k in (16, 128, 4096)),
        *((1, sample, (300, 128)) for sample in (subset_sample, adlp_sample)),
        *((5, sample, (k,)) for sample in (subset_sample, adlp_sample) for k in (4097, 50_000)),
        *((5, sample, (3, 5000)) for sample in (subset_sample, adlp_sample)),
        *((1, subset_weights, shape) for shape in ((16,), (4096,), (300, 128))),
        *((4, subset_weights, (k,)) for k in (4097, 50_000)),
        (1, "sliced_variance", (torch.rand(50), 5)),
        (1, "permute", (torch.arange(5000), 5001, list(range(8)))),
        *((3, lists, ("perturb_", 3, n, 0.1)) for n in (1, TABLE)),  # norm, its end, ascent
        (5, lists, ("perturb_", 3, TABLE + 1, 0.1)),
        (1, lists, ("restore_", 2, TABLE)),
        (2, lists, ("restore_", 2, TABLE + 1)),
        (2, lists, ("psf_capture_", 2, TABLE)),
        (3, lists, ("psf_capture_", 2, TABLE + 1)),
        (1, lists, ("psf_reuse_", 2, TABLE, torch.tensor(0.5))),
        (2, lists, ("psf_reuse_", 2, TABLE + 1, torch.tensor(0.5))),
        (3, bounded, (TABLE,)),  # norm, its end, reuse
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else None,
)
def test_kernels_of_a_call(library, call, kernels, operator, arguments):
    before = library.launches
    call(operator, *arguments) if isinstance(operator, str) else operator(call, *arguments)
    assert library.launches - before == kernels


class Watch(TorchDispatchMode):
    """What the launchers ask of torch."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.asked.append(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("operator", [subset_sample, adlp_sample, subset_weights])
@pytest.mark.parametrize(("n", "allocations"), [(4096, 1), (9000, 2)])
def test_long_rows_take_one_allocation_beside_the_result(call, operator, n, allocations):
    """And nothing else of torch: no memory is filled by it."""
    asked = []

    def watched(*args, **kwargs):
        with Watch() as watch:
            call(*args, **kwargs)
        asked.extend(watch.asked)

    operator(watched, n)
    assert asked == ["new_empty"] * allocations


@pytest.mark.parametrize("operator", [subset_sample, adlp_sample])
def test_a_row_longer_than_32_bits_count_is_refused(call, operator):
    def with_long_rows(name, *args, noise, **kwargs):
        *table, rows, k = args
        rows, noise = rows[:1].expand(2**32), noise[:1].expand(2**32)
        call(name, *table, rows, k, noise=noise, **kwargs)

    with pytest.raises(RuntimeError, match=r"a row of 4294967296 scores: at most 2\^32 - 1 on CUDA"):
        operator(with_long_rows, 8)


@pytest.mark.parametrize(
    ("kernels", "name", "depth", "rest"),
    [(5, "perturb_", 3, (0.1,)), (1, "restore_", 2, ()), (3, "psf_capture_", 2, ())],
)
def test_each_dtype_of_a_list_has_launches_of_its_own(library, call, kernels, name, depth, rest):
    """But bytes are copied whatever they mean."""
    before = library.launches
    lists(call, name, depth, 7, *rest, dtypes=MIXED)
    assert library.launches - before == kernels


@pytest.mark.parametrize(
    ("sizes", "dtype", "blocks"),
    [
        ((2048, 1, 0, 2049), torch.float32, 1 + 1 + 2),
        ((4096, 4097), torch.bfloat16, 1 + 2),
        ((4096 * 2048,), torch.float32, 4096),
        ((4096 * 2048 - 1, 1, 1), torch.float32, 2048 + 2),
        ((4096 * 2048 + 1,), torch.bfloat16, 2049),
        ((4096 * 16384 - 1,), torch.float32, 4096),
        ((4096 * 16384, 16384), torch.float32, 4097),
    ],
)
def test_blocks_of_a_list(library, call, sizes, dtype, blocks):
    """Each takes as much of a tensor as makes 2,048 to 4,096 of them, within 8 and 64 KB."""
    made = [[torch.empty(n, dtype=dtype) for n in sizes] for _ in range(2)]
    library.scalars_on_host(True)
    before = library.blocks
    call("psf_reuse_", *made, torch.tensor(0.0))  # which touches nothing
    assert library.blocks - before == blocks


@pytest.mark.parametrize("scale_on_host", [False, True])
def test_lists_that_lie_on_two_devices(library, call, scale_on_host):
    """One norm over both; each device has its own launches. (Both are memory of the host here.)"""
    params, results, launches = tensor_list(torch.float32), [], []
    grads = like(params, 1)
    assert {t.numel() % 2 for t in params} == {0, 1}
    for two in (False, True):
        library.two_devices(two)
        before = library.launches
        w, psf = [p.clone() for p in params], [p.clone() for p in params]
        backups, g = like(params, 2), [t.clone() for t in grads]
        norm = call("perturb_", w, grads, backups, 0.05)
        norms = call("psf_capture_", psf, grads, norm_last=4)
        library.scalars_on_host(scale_on_host)
        call("psf_reuse_", g, params, torch.tensor(0.5))
        library.scalars_on_host(False)
        launches.append(library.launches - before)
        results.append([[norm, *norms], w, psf, g])
        call("restore_", w, backups)
        assert all(map(same_bits, w, params))
    assert launches == [3 + 2 + 1, 5 + 3 + 2]
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)


LOADED_BOTH = """
import sys, torch
import ausam_ext
from emulation.library import Library
from emulation.calls import TABLE, caller, lists

libraries = []
for path in sys.argv[1:]:
    libraries.append(Library(path))
    lists(caller(libraries[-1]), "restore_", 2, TABLE + 1)
    print(libraries[-1].launches)
for library in libraries:
    lists(caller(library), "restore_", 2, TABLE + 1)
    print(library.launches)
"""


@pytest.mark.parametrize("order", [("", "-long-tables"), ("-long-tables", "")])
def test_two_libraries_in_one_process(emulated, order):
    """Each is called by its own key, whichever was loaded last."""
    paths = [emulated(suffix).path for suffix in order]
    done = subprocess.run(
        [sys.executable, "-c", LOADED_BOTH, *paths],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=300,
    )
    kernels = [1 if suffix else 2 for suffix in order]
    assert done.stdout.split() == [str(n) for n in [*kernels, *(2 * n for n in kernels)]], done.stderr
