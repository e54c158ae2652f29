"""VSAM: when it takes the second pass, what it reuses, what it leaves in .grad."""

import pytest
import torch
import torch.nn.functional as F
from helpers import same_bits
from networks import TwoHeads, assert_untouched, batch, closure_of, mlp, snapshot
from torch import nn

from ausam_ext import SAM, VSAM


def grads(model):
    return [p.grad.clone() for p in model.parameters()]


def equal(a, b):
    return all(same_bits(x, y) for x, y in zip(a, b, strict=True))


def run(model, method, steps, lr=0.1):
    """Trains; returns for each step whether it took the second pass."""
    optimizer, sampled = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), []
    for step in range(steps):
        _, loss_perturbed = method.backward(closure_of(model, *batch(seed=step)))
        sampled.append(loss_perturbed is not None)
        optimizer.step()
    return sampled


def test_always_sampling_is_sam_bit_for_bit(backend):
    a, b = mlp(), mlp()
    vsam = VSAM(a, rho=0.3, warmup_steps=10**6)
    assert all(run(a, vsam, 12)) and vsam.sampled
    run(b, SAM(b, rho=0.3), 12)
    assert equal(a.parameters(), b.parameters())


def test_a_rate_of_one_is_sam_bit_for_bit(backend):
    a, b = mlp(), mlp()
    vsam = VSAM(a, rho=0.3, warmup_steps=0, window=6, slices=2, max_rate=1.0, initial_samples=6, alpha=0.0)
    assert all(run(a, vsam, 20))
    run(b, SAM(b, rho=0.3), 20)
    assert equal(a.parameters(), b.parameters())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("samples", [1, 3.9, 8])
def test_exactly_int_s_iterations_of_every_window_are_sampled(seed, samples):
    model = mlp()
    vsam = VSAM(model, warmup_steps=3, window=10, slices=5, initial_samples=samples, alpha=0.0, seed=seed)
    sampled = run(model, vsam, 3 + 50)
    assert all(sampled[:3])
    assert [sum(sampled[3 + w : 13 + w]) for w in range(0, 50, 10)] == [int(samples)] * 5


def test_decisions_differ_by_window_and_seed_and_agree_between_processes():
    runs = {}
    for name, seed in (("a", 0), ("again", 0), ("other", 1)):
        model = mlp()
        vsam = VSAM(model, warmup_steps=0, window=10, slices=2, initial_samples=4, alpha=0.0, seed=seed)
        runs[name] = run(model, vsam, 60)
    assert runs["a"] == runs["again"] != runs["other"]
    windows = {tuple(runs["a"][i : i + 10]) for i in range(0, 60, 10)}
    assert len(windows) > 3


def test_the_number_of_samples_follows_the_controller():
    model = mlp()
    vsam = VSAM(
        model, rho=0.3, warmup_steps=20, window=10, slices=2, alpha=2.0, norm_params=None, initial_samples=3
    )
    sampled, rates = [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(80):
        if step >= 20 and (step - 20) % 10 == 0:
            rates.append(int(vsam.controller.s))
        vsam.backward(closure_of(model, *batch(seed=step)))
        sampled.append(vsam.sampled)
        optimizer.step()
    assert [sum(sampled[i : i + 10]) for i in range(20, 80, 10)] == rates
    assert rates[0] == 3 and len(set(rates)) > 1


def window_of_one_sample(model, **options):
    """Warm up with one sample, then none for the rest of the window (the quota of 1 is forced at its end)."""
    options = {"warmup_steps": 1, "window": 1000, "slices": 2, "max_rate": 0.001, "seed": 1, **options}
    return VSAM(model, rho=0.5, **options)


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


def test_explicit_form_equals_closure_form(backend):
    a, b = mlp(), mlp()
    options = {"warmup_steps": 4, "window": 8, "slices": 2, "initial_samples": 3}
    va, vb = VSAM(a, **options), VSAM(b, **options)
    for step in range(30):
        x, y = batch(seed=step)
        va.backward(closure_of(a, x, y))
        closure_of(b, x, y)()
        decision = vb.decide()
        assert vb.decide() is decision  # until the iteration ends
        if decision:
            with vb.perturbed():
                closure_of(b, x, y)()
        else:
            vb.reuse_()
        assert va.sampled == vb.sampled == decision
        assert equal(grads(a), grads(b))


def test_observed_norms_are_those_of_the_last_parameters(backend):
    for norm_params, last in ((2, slice(-2, None)), (None, slice(None)), (100, slice(None))):
        model, seen = mlp(), []
        vsam = VSAM(model, rho=0.5, warmup_steps=5, norm_params=norm_params)
        vsam.controller.observe = lambda psf, sgd, seen=seen: seen.append((psf, sgd))
        closure = closure_of(model, *batch())
        closure()
        sgd = grads(model)
        vsam.backward(closure)
        vsam.decide()  # the next iteration begins
        psf = [g - s for g, s in zip(grads(model), sgd, strict=True)]
        expected = [torch.cat([t.flatten() for t in ts[last]]).norm() for ts in (psf, sgd)]
        torch.testing.assert_close(torch.stack(seen[0]), torch.stack(expected), rtol=1e-5, atol=0)


def test_after_an_exception_inside_the_decision_stands_and_nothing_is_reused(backend):
    model = mlp()
    vsam = VSAM(model, rho=0.5, warmup_steps=3)
    vsam.backward(closure_of(model, *batch(seed=0)))  # leaves a PSF
    closure = closure_of(model, *batch(seed=1))
    closure()
    before, plain = snapshot(model), grads(model)
    with pytest.raises(ZeroDivisionError), vsam.perturbed():
        _ = 1 / 0
    assert_untouched(model, before)
    assert vsam.decide() and vsam.state_dict()["progress"][0] == 1  # the second iteration has not ended
    closure()
    vsam.reuse_()  # the training loop may also go on without a second pass
    assert equal(grads(model), plain)


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


def test_batchnorm_counts_first_passes():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    vsam = VSAM(model, warmup_steps=2, window=4, slices=2, initial_samples=2)
    run(model, vsam, 10)
    assert model[1].num_batches_tracked.item() == 10


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gamma": 1.1}, ValueError, "gamma: .*1.1"),
        ({"gamma": float("nan")}, ValueError, "gamma: .*nan"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps: .*-1"),
        ({"warmup_steps": 1.5}, TypeError, "warmup_steps: .*1.5"),
        ({"max_reuse": -1}, ValueError, "max_reuse: .*-1"),
        ({"norm_params": 0}, ValueError, "norm_params: .*0"),
        ({"window": 9}, ValueError, "window: .*9"),
        ({"alpha": -1}, ValueError, "alpha: .*-1"),
        ({"seed": -1}, ValueError, "seed: .*-1"),
        ({"rho": -1}, ValueError, "rho: .*-1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        VSAM(mlp(), **{"warmup_steps": 0, **arguments})


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


@pytest.mark.parametrize(
    ("rate", "window", "samples"), [(0.34, 50, 17), (0.58, 50, 29), (0.02, 50, 1), (0.1, 30, 3)]
)
def test_the_rate_to_start_from(rate, window, samples):
    model = mlp()
    vsam = VSAM(model, warmup_steps=0, window=window, initial_rate=rate, alpha=0.0)
    assert vsam.controller.s == samples
    assert sum(run(model, vsam, window)) == samples


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial_rate": 0.01}, "initial_rate: .*from 1 / window = 0.02 to max_rate = 0.8, got 0.01"),
        ({"initial_rate": 0.9}, "initial_rate: .*got 0.9"),
        (
            {"initial_rate": 0.3, "initial_samples": 10},
            "initial_rate: expected None beside initial_samples=10",
        ),
    ],
)
def test_rates_that_cannot_be_started_from(arguments, message):
    with pytest.raises(ValueError, match=message):
        VSAM(mlp(), warmup_steps=0, **arguments)
