"""How many kernels each operator launches, and lists that lie on two devices: in the emulation of CUDA."""

import pytest
import torch
from emulation.mode import run
from helpers import exponential, like, same_bits, tensor_list

OPS = torch.ops.ausam_ext
WEIGHTS = {"s_min": 0.1, "s_max": 1.0}
TABLE = 90  # tensors of one launch (kMaxTensors of csrc/cuda/list.cuh before CUDA 12.1)


@pytest.fixture
def library(emulated):
    library = emulated("")
    yield library
    library.two_devices(False)
    library.scalars_on_host(False)


def call(name, *args, **kwargs):
    return run(getattr(OPS, name).default, (args, kwargs))


def table():
    return torch.rand(50), torch.ones(50, dtype=torch.int32)


def subset_sample(*shape):
    call("subset_sample", torch.rand(shape), shape[-1] // 2, noise=exponential(*shape), **WEIGHTS)


def adlp_sample(*shape):
    index = torch.randint(0, 50, shape)
    call("adlp_sample", *table(), index, shape[-1] // 2, noise=exponential(*shape), **WEIGHTS)


def adlp_update_(n):
    call("adlp_update_", *table(), torch.randint(0, 50, (n,)), torch.rand(n), torch.rand(n))


def lists(name, depth, tensors, *rest, dtypes=(torch.float32,)):
    made = [[torch.randn(3, dtype=dtypes[i % len(dtypes)]) for i in range(tensors)] for _ in range(depth)]
    call(name, *made, *rest)


MIXED = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("kernels", "operator", "arguments"),
    [
        (1, "dlp", (torch.rand(5000), torch.rand(5000))),
        (1, adlp_update_, (128,)),
        (1, adlp_update_, (5000,)),
        *((1, sample, (k,)) for sample in (subset_sample, adlp_sample) for k in (16, 128, 4096)),
        *((1, sample, (300, 128)) for sample in (subset_sample, adlp_sample)),
        *((6, sample, (k,)) for sample in (subset_sample, adlp_sample) for k in (4097, 50_000)),
        (1, "sliced_variance", (torch.rand(50), 5)),
        *((3, lists, ("perturb_", 3, n, 0.1)) for n in (1, TABLE)),  # norm, its end, ascent
        (5, lists, ("perturb_", 3, TABLE + 1, 0.1)),
        (1, lists, ("restore_", 2, TABLE)),
        (2, lists, ("restore_", 2, TABLE + 1)),
        (2, lists, ("psf_capture_", 2, TABLE)),
        (3, lists, ("psf_capture_", 2, TABLE + 1)),
        (1, lists, ("psf_reuse_", 2, TABLE, torch.tensor(0.5))),
        (2, lists, ("psf_reuse_", 2, TABLE + 1, torch.tensor(0.5))),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else None,
)
def test_kernels_of_a_call(library, kernels, operator, arguments):
    before = library.launches
    call(operator, *arguments) if isinstance(operator, str) else operator(*arguments)
    assert library.launches - before == kernels


@pytest.mark.parametrize(
    ("kernels", "name", "depth", "rest"),
    [(5, "perturb_", 3, (0.1,)), (1, "restore_", 2, ()), (3, "psf_capture_", 2, ())],
)
def test_each_dtype_of_a_list_has_launches_of_its_own(library, kernels, name, depth, rest):
    """But bytes are copied whatever they mean."""
    before = library.launches
    lists(name, depth, 7, *rest, dtypes=MIXED)
    assert library.launches - before == kernels


@pytest.mark.parametrize("scale_on_host", [False, True])
def test_lists_that_lie_on_two_devices(library, scale_on_host):
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
