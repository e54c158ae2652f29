"""Autocast, gradient scaling, overflow in either pass, parameters of 16 bits."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from helpers import same_bits
from networks import batch, mlp
from sam.oracle import sam_gradient_float64
from sam.scaling import assert_close, scaler
from torch import nn

from ausam_ext import ADLP, SAM, VSAM

INF = float("inf")


def make(method, model, **kwargs):
    if method == "SAM":
        return SAM(model, 0.1, **kwargs)
    # One sample in the warm-up, then a quota of one in a long window, drawn late: its PSF is reused.
    return VSAM(model, 0.1, warmup_steps=1, window=1000, slices=2, max_rate=0.001, seed=1, **kwargs)


class Loop:
    """A training loop in the explicit form, with everything that mixed precision asks for."""

    def __init__(self, method, scaler=None, dtype=None, clip=None, seed=0):
        self.model = mlp(seed=seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
        self.sam = make(method, self.model, scaler=self.scaler)
        self.adlp, self.dtype, self.clip = ADLP(20), dtype, clip

    def losses(self, x, y, factor):
        with torch.autocast("cpu", self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            loss = F.cross_entropy(self.model(x), y, reduction="none")
        self.scaler.scale(loss.mean() * factor).backward()
        return loss

    def step(self, x, y, factor=1.0, factor_perturbed=1.0):
        """``factor``, ``factor_perturbed``: of the gradients of a pass; inf is an overflow."""
        loss = self.losses(x, y, factor)
        if not isinstance(self.sam, VSAM) or self.sam.decide():
            with self.sam.perturbed():
                loss_perturbed = self.losses(x, y, factor_perturbed)
            self.adlp.update(torch.arange(len(x)), loss, loss_perturbed, skip=self.sam.overflow)
        else:
            self.sam.reuse_()
        self.scaler.unscale_(self.optimizer)
        self.gradient = [p.grad.clone() for p in self.model.parameters()]
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]

    def momentum(self):
        return [s["momentum_buffer"].clone() for s in self.optimizer.state.values()]


def equal(a, b):
    return all(same_bits(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("method", ["SAM", "VSAM"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_scaling_changes_nothing_but_rounding(backend, method, clip):
    """Also where the scale changes from step to step: what is reused was kept unscaled."""
    plain, scaled = Loop(method, clip=clip), Loop(method, scaler(2.0**20, growth_interval=1), clip=clip)
    scales = []
    for step in range(8):
        for loop in (plain, scaled):
            loop.step(*batch(seed=step))
        scales.append(scaled.scaler.get_scale())
        assert plain.sam.overflow is None and not (scaled.sam.overflow or False)
        assert_close(scaled.gradient, plain.gradient, 1e-5)
    assert len(set(scales)) == 8
    torch.testing.assert_close(scaled.adlp.mean(), plain.adlp.mean(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["SAM", "VSAM"])
@pytest.mark.parametrize(
    "factors",
    [(INF, 1.0), (1.0, INF), (INF, INF), (math.nan, 1.0)],
    ids=["first pass", "second pass", "both", "first pass, NaN"],
)
def test_an_overflow_skips_the_step_and_leaves_no_trace(backend, method, factors):
    loop, twin = Loop(method, scaler()), Loop(method, scaler())
    if method == "VSAM":
        for each in (loop, twin):
            each.sam.warmup_steps = 10**6  # every step has two passes
    for each in (loop, twin):
        each.step(*batch(seed=0))
    before = (loop.weights(), loop.momentum(), [loop.adlp.total.clone(), loop.adlp.count.clone()])
    pointers = [p.data_ptr() for p in loop.model.parameters()]

    loop.step(*batch(seed=1), *factors)

    assert loop.sam.overflow.item() is True
    assert loop.scaler.get_scale() == 2.0**15
    after = (loop.weights(), loop.momentum(), [loop.adlp.total, loop.adlp.count])
    assert all(equal(a, b) for a, b in zip(before, after, strict=True))
    assert [p.data_ptr() for p in loop.model.parameters()] == pointers

    for each in (loop, twin):
        each.step(*batch(seed=2))
    assert loop.sam.overflow.item() is False
    assert_close(loop.gradient, twin.gradient, 1e-5)
    torch.testing.assert_close(loop.adlp.mean(), twin.adlp.mean(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["SAM", "VSAM"])
def test_an_overflow_in_the_first_pass_skips_every_optimizer(backend, method):
    """Each looks at the gradients of only its own parameters."""
    model, scale = mlp(), scaler()
    sam = make(method, model, scaler=scale)
    optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2, 4)]
    before = [p.detach().clone() for p in model.parameters()]
    for factor in (INF, 1.0):
        x, y = batch()
        scale.scale(F.cross_entropy(model(x), y) * factor).backward()
        with sam.perturbed():
            scale.scale(F.cross_entropy(model(x), y)).backward()
        for optimizer in optimizers:
            scale.step(optimizer)
        scale.update()
        model.zero_grad()
        assert equal(model.parameters(), before) == (factor == INF)


@pytest.mark.parametrize("factors", [(INF, 1.0), (1.0, INF)])
@pytest.mark.parametrize("where", ["last parameters", "others"])
def test_a_psf_that_overflowed_is_not_reused(backend, factors, where):
    """One that is not finite would make the scaler skip every step until the next sample."""
    loop, plain = Loop("VSAM", scaler()), Loop("VSAM")
    for each in (loop, plain):
        each.sam.norm_params = 2
    if where == "others":  # an overflow on the way back through the network does not reach its end
        factor = factors[0] if factors[0] == INF else factors[1]
        passes = iter([f == INF for f in factors])

        def overflow(grad):
            return grad * factor if next(passes, False) else grad

        loop.model[0].bias.register_hook(overflow)
        factors = (1.0, 1.0)
    loop.step(*batch(seed=0), *factors)
    assert loop.sam.overflow.item() is True and loop.sam.state_dict()["has_psf"].all()
    for step in range(1, 4):
        loop.step(*batch(seed=step))
        plain.losses(*batch(seed=step), 1.0)
        assert_close(loop.gradient, [p.grad for p in plain.model.parameters()], 1e-5)
        plain.model.load_state_dict(loop.model.state_dict())
        plain.model.zero_grad()
    assert loop.scaler.get_scale() == 2.0**15


def test_psf_and_norms_are_unscaled(backend):
    plain, scaled = Loop("VSAM"), Loop("VSAM", scaler(2.0**12))
    for loop in (plain, scaled):
        loop.step(*batch())
    a, b = plain.sam.state_dict(), scaled.sam.state_dict()
    assert_close(b["psf"], a["psf"], 1e-4)
    torch.testing.assert_close(
        b["controller"]["observed"][0], a["controller"]["observed"][0], rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("method", ["SAM", "VSAM"])
def test_a_float16_network_finds_its_scale_and_learns(method):
    """Overflows that nobody forced: the scale starts far too high."""
    loop = Loop(method, scaler(2.0**40), dtype=torch.float16)
    x, y = batch(n=20)
    first = F.cross_entropy(loop.model(x), y).item()
    skipped = 0
    for _ in range(60):
        before = loop.weights()
        loop.step(x, y)
        skipped += equal(before, loop.weights())
    assert 10 < skipped < 40 and 2.0**40 * 0.5**skipped == loop.scaler.get_scale()
    assert F.cross_entropy(loop.model(x), y).item() < 0.7 * first
    assert loop.adlp.count.unique().tolist() == [60 - skipped] or method == "VSAM"
    assert loop.adlp.total.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["SAM", "VSAM"])
def test_one_autocast_block_around_the_step_sees_the_perturbed_weights(method, dtype):
    """Autocast keeps its casts of weights until the block ends: stale ones would make SAM plain SGD."""
    whole, apart, (x, y) = mlp(), mlp(), batch()

    def closure_of(model, block):
        def closure():
            model.zero_grad()
            with block():
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        return closure

    def autocast():
        return torch.autocast("cpu", dtype)

    expected = make(method, apart).backward(closure_of(apart, autocast))
    with autocast():
        losses = make(method, whole).backward(closure_of(whole, nullcontext))
        after = F.cross_entropy(whole(x), y)
    with autocast():
        assert torch.equal(after, F.cross_entropy(whole(x), y))  # at w again, not at w + epsilon
    assert all(map(torch.equal, losses, expected)) and not torch.equal(*losses)
    assert equal(*([p.grad for p in model.parameters()] for model in (whole, apart)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
@pytest.mark.parametrize("method", ["SAM", "VSAM"])
def test_parameters_of_16_bits(backend, method, dtype, tolerance):
    model, (x, y) = mlp(dtype), batch(dtype=dtype)
    exact = sam_gradient_float64(copy.deepcopy(model), x, y, 0.1, False)

    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    make(method, model).backward(closure)
    got = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    assert (got - exact).norm() <= tolerance * exact.norm()
    assert all(p.grad.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize("method", ["SAM", "VSAM"])
def test_bad_scaler(method):
    with pytest.raises(TypeError, match=r"scaler: expected a torch.amp.GradScaler, got 65536"):
        make(method, mlp(), scaler=65536.0)
