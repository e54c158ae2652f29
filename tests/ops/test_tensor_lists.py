"""perturb_, restore_, psf_capture_ and psf_reuse_ on lists of tensors of every layout."""

import numpy as np
import pytest
import torch
from helpers import FLOATING, assert_error_at_most_twice, like, same_bits, tensor_list

from ausam_ext import ops

NAN, INF = float("nan"), float("inf")
RHO = 0.05


def exact_norm_of(tensors):
    flat = torch.cat([t.double().flatten() for t in tensors]).numpy().astype(np.longdouble)
    return torch.tensor(float(np.sqrt((flat * flat).sum())), dtype=torch.float64)


def scalar_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("adaptive", [False, True])
def test_perturb(backend, dtype, adaptive):
    params = tensor_list(dtype)
    grads, backups = like(params, 1), like(params, 2)
    before = [p.clone() for p in params]
    pointers = [p.data_ptr() for p in params]
    directions = [
        w.double() * g.double() if adaptive else g.double() for w, g in zip(params, grads, strict=True)
    ]
    exact_norm = exact_norm_of(directions)
    plain_norm = torch.stack(
        [(w * g if adaptive else g).norm() for w, g in zip(params, grads, strict=True)]
    ).norm()

    norm = ops.perturb_(params, grads, backups, RHO, adaptive=adaptive)

    assert norm.dtype == scalar_dtype(dtype) and norm.shape == ()
    assert_error_at_most_twice(norm, plain_norm, exact_norm)
    assert [p.data_ptr() for p in params] == pointers
    for w, g, p, backup in zip(before, grads, params, backups, strict=True):
        assert same_bits(backup, w)
        if w.numel():
            step = w * w * g if adaptive else g
            step64 = (w.double() ** 2 if adaptive else 1) * g.double()
            plain = w + (RHO / (plain_norm + 1e-12)).to(dtype) * step
            assert_error_at_most_twice(p, plain, w.double() + RHO / (exact_norm + 1e-12) * step64)
    ops.restore_(params, backups)
    assert all(same_bits(p, w) for p, w in zip(params, before, strict=True))
    assert [p.data_ptr() for p in params] == pointers


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("given", [False, True])
def test_down_the_gradient_is_up_its_opposite(backend, dtype, adaptive, given):
    up, down = tensor_list(dtype), tensor_list(dtype)
    grads, before = like(up, 1), [p.clone() for p in up]
    norm = torch.tensor(0.3, dtype=torch.float64) if given else None
    backups = [[torch.empty_like(p) for p in up] for _ in range(2)]
    norms = [
        ops.perturb_(up, [-g for g in grads], backups[0], 20.0, adaptive=adaptive, norm=norm),
        ops.perturb_(down, grads, backups[1], 20.0, adaptive=adaptive, maximize=True, norm=norm),
    ]
    assert same_bits(*norms)
    for a, b, w, saved in zip(up, down, before, backups[1], strict=True):
        assert same_bits(a, b) and same_bits(saved, w)
    assert not torch.equal(up[4], before[4])


@pytest.mark.parametrize("value", [0.0, NAN, INF])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_norm_that_is_zero_or_not_finite_perturbs_nothing(backend, value, adaptive):
    params = tensor_list(torch.float32)
    grads, backups = [torch.zeros_like(p) for p in params], [torch.empty_like(p) for p in params]
    grads[0][2, 2] = value
    before = [p.clone() for p in params]
    norm = ops.perturb_(params, grads, backups, RHO, adaptive=adaptive)
    assert not (norm > 0 and norm.isfinite())
    assert all(same_bits(p, w) and same_bits(b, w) for p, b, w in zip(params, backups, before, strict=True))


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("adaptive", [False, True])
def test_lists_that_share_a_given_norm_are_perturbed_as_one(backend, dtype, adaptive):
    params = tensor_list(dtype)
    grads, backups, again = like(params, 1), like(params, 2), like(params, 3)
    restored = [p.clone() for p in params]
    norm = ops.perturb_(params, grads, backups, RHO, adaptive=adaptive)
    together = [p.clone() for p in params]
    for i in (0, 2, len(params)):
        ops.restore_(params, restored)
        for part in (slice(i), slice(i, None)):
            if params[part]:
                used = ops.perturb_(params[part], grads[part], again[part], RHO, adaptive=adaptive, norm=norm)
                assert same_bits(used, norm) and used is not norm
        for p, t, b, w in zip(params, together, again, restored, strict=True):
            assert same_bits(b, w)
            torch.testing.assert_close(p, t, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("value", [0.0, NAN, INF])
def test_a_given_norm_that_is_zero_or_not_finite_perturbs_nothing(backend, value):
    params, backups = [torch.randn(5)], [torch.empty(5)]
    before = params[0].clone()
    ops.perturb_(params, [torch.ones(5)], backups, RHO, norm=torch.tensor(value, dtype=torch.float64))
    assert same_bits(params[0], before) and same_bits(backups[0], before)


def test_rho_zero_changes_no_bit(backend):
    params = [torch.tensor([-0.0, 1.0, NAN])]
    before, backups = params[0].clone(), [torch.empty(3)]
    ops.perturb_(params, [torch.tensor([1.0, INF, -1.0])], backups, 0.0)
    ops.perturb_(params, [torch.tensor([1.0, 2.0, -1.0])], backups, 0.0)
    assert same_bits(params[0], before) and same_bits(backups[0], before)


@pytest.mark.parametrize("n", [5, 5003])
def test_mixed_dtypes_in_one_list(backend, n):
    params = [torch.randn(n).to(d) for d in FLOATING]
    grads, backups = [torch.randn(n).to(d) for d in FLOATING], [torch.empty(n, dtype=d) for d in FLOATING]
    before = [p.clone() for p in params]
    exact = exact_norm_of(grads)
    norm = ops.perturb_(params, grads, backups, RHO)
    assert norm.dtype == torch.float64
    torch.testing.assert_close(norm, exact, rtol=1e-12, atol=0)
    for p, w, g in zip(params, before, grads, strict=True):
        eps = torch.finfo(p.dtype).eps
        torch.testing.assert_close(
            p.double(), w.double() + RHO / (exact + 1e-12) * g.double(), rtol=eps, atol=eps
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [1e30, -1e-30, 2.0**-126, 1e-40, 0.0, -INF, NAN])
def test_gradients_of_any_size_have_a_norm(backend, dtype, value):
    """The reference sums in float32, as torch does: squares above 1.8e19 overflow and small ones vanish."""
    grads = [torch.full((19,), value, dtype=dtype)]
    exact = torch.linalg.vector_norm(
        grads[0], dtype=torch.float32 if backend == "reference" else torch.float64
    )
    norm = ops.perturb_(
        [torch.zeros_like(g) for g in grads], grads, [torch.empty_like(g) for g in grads], RHO
    )
    if backend.startswith("cuda") and value == 1e-40:  # without a leading bit: these kernels take it for 0
        exact = 0.0
    assert norm.item() == pytest.approx(float(exact), rel=1e-6, abs=0, nan_ok=True)


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FC00000, -1])
def test_a_nan_of_any_bits_makes_the_norm_one(backend, bits):
    grads = [torch.tensor([bits] + 5 * [0], dtype=torch.int32).view(torch.float32)]
    assert ops.perturb_([torch.zeros(6)], grads, [torch.empty(6)], RHO).isnan()


def test_restore_takes_any_dtype(backend):
    sources = [
        torch.tensor(7),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]),
        torch.tensor([NAN, -0.0]),
    ]
    targets = [torch.zeros_like(s) for s in sources]
    ops.restore_(targets, sources)
    assert all(same_bits(t, s) for t, s in zip(targets, sources, strict=True))


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("norm_last", [None, 1, 3, 9])
def test_psf_capture(backend, dtype, norm_last):
    sgd = tensor_list(dtype)
    grads, psf = like(sgd, 1), [t.clone() for t in sgd]
    before = [g.clone() for g in grads]
    psf_norm, sgd_norm = ops.psf_capture_(psf, grads, norm_last=norm_last)
    last = slice(len(sgd) - norm_last, None) if norm_last else slice(None)
    for p, s, g in zip(psf, sgd, grads, strict=True):
        if p.numel():
            assert_error_at_most_twice(p, g - s, g.double() - s.double())
    for norm, tensors in ((psf_norm, psf), (sgd_norm, sgd)):
        assert norm.dtype == scalar_dtype(dtype) and norm.shape == ()
        plain = torch.stack([t.norm() for t in tensors[last]]).norm()
        assert_error_at_most_twice(norm, plain, exact_norm_of(tensors[last]))
    assert all(same_bits(g, b) for g, b in zip(grads, before, strict=True))


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("scale", [0.9, torch.tensor(0.9), torch.tensor(-2.5, dtype=torch.float64)])
def test_psf_reuse(backend, dtype, scale):
    grads = tensor_list(dtype)
    psf, before = like(grads, 1), [g.clone() for g in grads]
    ops.psf_reuse_(grads, psf, scale)
    for g, w, p in zip(grads, before, psf, strict=True):
        if g.numel():
            # The scale is rounded to the dtype that is computed in, as torch does with alpha=.
            s = torch.as_tensor(scale, dtype=torch.float64).to(scalar_dtype(dtype))
            assert_error_at_most_twice(g, w + s.to(dtype) * p, w.double() + s.double() * p.double())


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("limit_dtype", [torch.float32, torch.float64])
def test_psf_reuse_of_no_more_than_there_is_of_the_gradient(backend, dtype, share, limit_dtype):
    grads = tensor_list(dtype)
    psf, whole = like(grads, 1), [g.clone() for g in grads]
    norm = exact_norm_of([g.double() for g in grads])
    limit = (norm / share).to(limit_dtype)
    ops.psf_reuse_(grads, psf, 0.7, limit=limit)
    scale = 0.7 * (norm / limit.double()).clamp(max=1)
    for g, p, before in zip(grads, psf, whole, strict=True):
        size = before.double().abs() + scale * p.double().abs()
        error = (g.double() - (before.double() + scale * p.double())).abs()
        assert (error <= (2 * torch.finfo(dtype).eps + 4e-15) * size).all()  # and that of the norm in float64


@pytest.mark.parametrize("limit", [0.0, NAN])
def test_psf_reuse_without_a_known_limit_adds_all(backend, limit):
    grads = tensor_list(torch.float32)
    psf, whole = like(grads, 1), [g.clone() for g in grads]
    ops.psf_reuse_(grads, psf, 0.7, limit=torch.tensor(limit))
    ops.psf_reuse_(whole, psf, 0.7)
    assert all(same_bits(a, b) for a, b in zip(grads, whole, strict=True))
    ops.psf_reuse_([], [], 0.7, limit=torch.tensor(limit))


def test_psf_reuse_with_scale_zero_changes_no_bit(backend):
    grads = [torch.tensor([-0.0, 1.0, 2.0])]
    before = grads[0].clone()
    ops.psf_reuse_(grads, [torch.tensor([1.0, NAN, INF])], 0.0)
    assert same_bits(grads[0], before)


def test_empty_lists(backend):
    assert ops.perturb_([], [], [], RHO).item() == 0
    assert [x.item() for x in ops.psf_capture_([], [])] == [0, 0]
    ops.restore_([], [])
    ops.psf_reuse_([], [], 0.5)


def test_lists_longer_than_a_table_of_pointers(backend):
    """The norm goes over all launches, `norm_last` may begin in any of them."""
    n = 201 if backend == "cuda-emulated" else 701  # a table there has 90 entries, elsewhere up to 640
    sizes = [1 + i % 5 for i in range(n)]
    params, grads = ([torch.randn(size) for size in sizes] for _ in range(2))
    before, backups = [p.clone() for p in params], [torch.empty_like(p) for p in params]
    norm = ops.perturb_(params, grads, backups, RHO)
    torch.testing.assert_close(norm.double(), exact_norm_of(grads), rtol=1e-6, atol=0)
    for p, w, g in zip(params, before, grads, strict=True):
        torch.testing.assert_close(p, w + RHO / (norm + 1e-12) * g)
    ops.restore_(params, backups)
    assert all(same_bits(p, w) for p, w in zip(params, before, strict=True))
    for last in (60, n):
        psf = [p.clone() for p in params]
        norms = ops.psf_capture_(psf, grads, norm_last=last)
        assert all(torch.equal(p, g - w) for p, g, w in zip(psf, grads, params, strict=True))
        for norm, tensors in zip(norms, (psf, params), strict=True):
            torch.testing.assert_close(norm.double(), exact_norm_of(tensors[-last:]), rtol=1e-6, atol=0)
    ops.psf_reuse_(grads, params, 1.0)
    for g, p, w in zip(grads, psf, before, strict=True):  # psf = g - w before
        torch.testing.assert_close(g, p + 2 * w)


def test_results_do_not_depend_on_the_number_of_threads(threads):
    params, grads = tensor_list(torch.float32), like(tensor_list(torch.float32), 1)
    results = []
    for n in (1, 2, 3, 8):
        threads(n)
        w, psf = [p.clone() for p in params], [g.clone() for g in grads]
        norm = ops.perturb_(w, grads, [torch.empty_like(p) for p in w], RHO)
        results.append([norm, *ops.psf_capture_(psf, params), *w, *psf])
    assert all(same_bits(a, b) for r in results for a, b in zip(r, results[0], strict=True))
