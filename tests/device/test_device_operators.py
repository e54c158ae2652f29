"""The operators on tensors of the device: against the CPU, streams, other devices, opcheck."""

import pytest
import torch
from device.copies import on
from helpers import exponential, like, same_bits, tensor_list
from hypothesis import given
from hypothesis import strategies as st
from ops.samples import NAMES, sample_inputs
from torch.library import opcheck
from torch.utils._pytree import tree_leaves, tree_map

from ausam_ext import ops

EXACT = {"dlp", "subset_sample", "adlp_sample", "restore_"}


def assert_agree(name, a, b):
    for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True):
        if isinstance(x, torch.Tensor):
            if name in EXACT or not x.is_floating_point():
                assert same_bits(x.cpu(), y.cpu())
            else:
                torch.testing.assert_close(x.cpu(), y.cpu(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_results_stay_on_the_device_and_are_those_of_the_cpu(device, name):
    for args, kwargs in sample_inputs(name):
        here, there = on("cpu", (args, kwargs)), on(device, (args, kwargs))
        results = [getattr(ops, name)(*args, **kwargs) for args, kwargs in (here, there)]
        assert all(t.device.type == device for t in tree_leaves(results[1]) if isinstance(t, torch.Tensor))
        assert_agree(name, (results[0], here), (results[1], there))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_opcheck_on_the_device(device, name):
    for args, kwargs in sample_inputs(name):
        opcheck(getattr(torch.ops.ausam_ext, name).default, *on(device, (args, kwargs)))


@pytest.mark.parametrize(
    "index", [torch.tensor([0, 3, 20, -1]), torch.tensor([2**31 - 1], dtype=torch.int32)]
)
def test_an_index_outside_is_counted_on_the_device(device, index):
    total, count, index = torch.rand(5, device=device), torch.ones(5, device=device).int(), index.to(device)
    invalid = torch.zeros((), dtype=torch.int32, device=device)
    ops.adlp_sample(total, count, index, 1, invalid=invalid)
    loss = torch.zeros(index.shape, device=device)
    ops.adlp_update_(total, count, index, loss, loss + 1, invalid=invalid)
    outside = int(((index < 0) | (index >= 5)).sum())
    assert invalid.item() == 2 * outside and count.sum().item() == 5 + len(index) - outside


def test_a_generator_of_the_device_draws_the_noise(device):
    scores = torch.rand(3, 200, device=device)
    a, b, other = (
        ops.subset_sample(scores, 90, generator=torch.Generator(device).manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(a, other)


def check_any_rows(device, shape, share, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(shape, generator=generator)
    scores[torch.rand(shape, generator=generator) < 0.1] = float("nan")
    noise, k = exponential(*shape, seed=seed), max(1, int(share * shape[-1]))
    there = ops.subset_sample(scores.to(device), k, noise=noise.to(device))
    assert torch.equal(there.cpu(), ops.subset_sample(scores, k, noise=noise))


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 2100) | st.integers(32700, 32800))


def test_the_same_subset_for_any_rows(device):
    given(SHAPES, st.floats(0, 1), st.integers(0, 2**32))(
        lambda shape, share, seed: check_any_rows(device, shape, share, seed)
    )()


def test_a_million_scores(device):
    check_any_rows(device, (1, 1_000_003), 0.5, 7)


def cuda(device):
    if device != "cuda":
        pytest.skip("streams and several devices are CUDA's")


def test_work_goes_to_the_current_stream(device):
    """Behind a kernel that keeps the stream busy; the default stream would not wait for it."""
    cuda(device)
    stream = torch.cuda.Stream()
    for name in NAMES:
        for args, kwargs in sample_inputs(name):
            expected = on(device, (args, kwargs))
            result = getattr(ops, name)(*expected[0], **expected[1])
            filled = on(device, (args, kwargs))
            late = tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, filled)
            for t in tree_leaves(late):
                if isinstance(t, torch.Tensor) and t.is_floating_point():
                    t.zero_()
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                torch.cuda._sleep(20_000_000)
                for t, value in zip(tree_leaves(late), tree_leaves(filled), strict=True):
                    if isinstance(t, torch.Tensor):
                        t.copy_(value)
                got = getattr(ops, name)(*late[0], **late[1])
            stream.synchronize()
            for a, b in zip(tree_leaves((result, expected)), tree_leaves((got, late)), strict=True):
                if isinstance(a, torch.Tensor):
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def two(device):
    cuda(device)
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")


@pytest.mark.parametrize("name", NAMES)
def test_tensors_of_another_device_than_the_current_one(device, name):
    two(device)
    for args, kwargs in sample_inputs(name):
        here, there = on("cuda:0", (args, kwargs)), on("cuda:1", (args, kwargs))
        results = [getattr(ops, name)(*args, **kwargs) for args, kwargs in (here, there)]
        assert torch.cuda.current_device() == 0
        assert_agree(name, (results[0], here), (results[1], there))


def test_several_devices_in_one_list(device):
    two(device)
    params = tensor_list(torch.float32)
    grads, devices = like(params, 1), [f"cuda:{i % 2}" for i in range(len(params))]

    def spread(tensors):
        return [t.to(d) for t, d in zip(tensors, devices, strict=True)]

    w, g, backups = spread(params), spread(grads), [torch.empty_like(t) for t in spread(params)]
    expected = [p.clone() for p in params]
    norm = ops.perturb_(expected, grads, [torch.empty_like(p) for p in params], 0.05)
    torch.testing.assert_close(ops.perturb_(w, g, backups, 0.05).cpu(), norm)
    for a, b in zip(w, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b)
    ops.restore_(w, backups)
    assert all(same_bits(a.cpu(), b) for a, b in zip(w, params, strict=True))
    norms, exact = ops.psf_capture_(w, g), ops.psf_capture_(params, grads)
    torch.testing.assert_close([n.cpu() for n in norms], list(exact))
    ops.psf_reuse_(g, w, 0.5)
    ops.psf_reuse_(grads, params, 0.5)
    for a, b in zip(g, grads, strict=True):
        torch.testing.assert_close(a.cpu(), b)
