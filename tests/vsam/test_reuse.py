"""VSAM: what it reuses between its second passes, decayed and bounded."""

import pytest
import torch
import torch.nn.functional as F
from helpers import same_bits
from networks import TwoHeads, batch, closure_of, mlp
from vsam.steps import equal, grads, run, window_of_one_sample

from ausam_ext import SAM, VSAM


@pytest.mark.parametrize("gamma", [0.5, 0.9, 1.0])
def test_reuse_adds_the_decayed_psf_and_stops(backend, gamma):
    model = mlp()
    vsam = window_of_one_sample(model, gamma=gamma, max_reuse=3)
    first = closure_of(model, *batch(seed=0))
    first()
    sgd = grads(model)
    vsam.backward(first)
    psf = [g - s for g, s in zip(grads(model), sgd, strict=True)]
    for age in range(1, 7):
        closure = closure_of(model, *batch(seed=age))
        closure()
        plain = grads(model)
        _, loss_perturbed = vsam.backward(closure)
        assert loss_perturbed is None and vsam.sampled is False
        if age <= 3:
            expected = [g + gamma**age * p for g, p in zip(plain, psf, strict=True)]
            torch.testing.assert_close(grads(model), expected, rtol=1e-6, atol=1e-8)
            assert not equal(grads(model), plain)
        else:
            assert equal(grads(model), plain)


def test_gamma_zero_is_plain_sgd_between_samples(backend):
    """vSAM-A."""
    model = mlp()
    vsam = window_of_one_sample(model, gamma=0.0)
    for step in range(4):
        closure = closure_of(model, *batch(seed=step))
        closure()
        plain = grads(model)
        vsam.backward(closure)
        assert equal(grads(model), plain) == (step > 0)


def test_parameters_with_a_gradient_in_one_pass_only(backend):
    model, (x, y) = TwoHeads(), batch()
    vsam = VSAM(model, rho=0.5, warmup_steps=1, window=1000, slices=2, max_rate=0.001, seed=1)
    F.cross_entropy(model(x, "a"), y).backward()
    with vsam.perturbed():
        F.cross_entropy(model(x, "b"), y).backward()
    for head in ("a", "b"):
        model.zero_grad()
        F.cross_entropy(model(x, head), y).backward()
        plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        vsam.decide()
        vsam.reuse_()
        for name, p in model.named_parameters():
            if p.grad is not None:  # only the body had a gradient in both passes, so only it has a PSF
                assert same_bits(p.grad, plain[name]) == (not name.startswith("body"))


def test_gradients_that_are_views_of_a_buffer_are_not_kept_as_psf(backend):
    """As a bucket's views are: the next backward pass writes over them."""
    model = mlp()
    flat = torch.zeros(sum(p.numel() for p in model.parameters()))
    views = [
        v.view_as(p)
        for v, p in zip(flat.split([p.numel() for p in model.parameters()]), model.parameters(), strict=True)
    ]

    def closure():
        x, y = batch()
        loss = F.cross_entropy(model(x), y)
        for p, view, g in zip(
            model.parameters(), views, torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            p.grad = view.copy_(g)
        return loss.detach()

    vsam, twin_model = window_of_one_sample(model), mlp()
    twin = window_of_one_sample(twin_model)
    for _ in range(4):
        vsam.backward(closure)
        twin.backward(closure_of(twin_model, *batch()))
        torch.testing.assert_close(grads(model), grads(twin_model), rtol=1e-5, atol=1e-7)


def test_reuse_before_a_backward_pass_is_refused():
    with pytest.raises(RuntimeError, match="call backward"):
        VSAM(mlp(), warmup_steps=0).reuse_()


def vsam_of(model, **kwargs):
    return VSAM(model, 0.3, warmup_steps=1, gamma=0.5, **kwargs)  # whose powers are exact


@pytest.mark.parametrize("norm_params", [2, None])
@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_a_bounded_reuse_is_in_proportion_to_the_gradient(backend, size, norm_params):
    """g + gamma^age * min(1, ||g|| / ||g at the sample||) * PSF, with both norms over all weights."""
    model, (x, y) = mlp(torch.float64), batch(dtype=torch.float64)
    vsam = vsam_of(model, bounded=True, norm_params=norm_params)
    first, second = passes(model, x, y)
    assert vsam.backward(closure_of(model, x, y))[1] is not None
    for age in (1, 2, 3):

        def closure():
            model.zero_grad()
            loss = size * F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        assert vsam.backward(closure)[1] is None
        scale = 0.5**age * min(size, 1.0)
        for p, g, s in zip(model.parameters(), first, second, strict=True):
            torch.testing.assert_close(p.grad, size * g + scale * (s - g), rtol=1e-6, atol=1e-12)


def passes(model, x, y):
    """Gradients of both passes of SAM at the weights as they are."""
    closure_of(model, x, y)()
    first = grads(model)
    with SAM(model, 0.3).perturbed():
        closure_of(model, x, y)()
    second = grads(model)
    model.zero_grad()
    return first, second


def test_a_bounded_reuse_does_not_depend_on_the_scale_of_the_losses():
    runs, (x, y) = [], batch(dtype=torch.float64)
    for enabled in (False, True):
        model = mlp(torch.float64)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1, enabled=enabled)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        vsam = VSAM(model, 0.3, warmup_steps=2, scaler=scaler, bounded=True)

        def closure(model=model, scaler=scaler):
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            return loss

        for _ in range(7):  # the scale doubles in each
            vsam.backward(closure)
            scaler.step(optimizer)
            scaler.update()
        runs.append(list(model.parameters()))
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_bounded_reuse_goes_on_from_a_checkpoint(backend):
    a, b = mlp(), mlp()
    whole, first = (vsam_of(m, bounded=True) for m in (a, b))
    run(a, whole, 3)
    run(b, first, 3)
    again = vsam_of(b, bounded=True)
    again.load_state_dict(
        {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in first.state_dict().items()}
    )
    for vsam, model in ((whole, a), (again, b)):
        vsam.backward(closure_of(model, *batch(seed=9)))
    assert equal(grads(a), grads(b))
    older = {k: v for k, v in first.state_dict().items() if k != "limit"}
    again.load_state_dict(older)  # saved before there was a limit: none is known
    again.backward(closure_of(b, *batch(seed=9)))
    plain = vsam_of(b)
    plain.load_state_dict(older)
    expected = grads(b)
    plain.backward(closure_of(b, *batch(seed=9)))
    assert equal(grads(b), expected)
