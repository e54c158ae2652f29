"""VSAM: when it takes the second pass, and what it leaves in .grad."""

import pytest
import torch
from networks import assert_untouched, batch, closure_of, mlp, snapshot
from torch import nn
from vsam.steps import equal, grads, run

from ausam_ext import SAM, VSAM


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


def test_a_loop_that_never_asks_is_told_once():
    """It would pay for two passes in every step."""
    model, (x, y) = mlp(), batch()
    vsam = VSAM(model, warmup_steps=0)

    def steps(n, ask):
        for _ in range(n):
            closure_of(model, x, y)()
            if ask and not vsam.decide():
                vsam.reuse_()
                continue
            with vsam.perturbed():
                closure_of(model, x, y)()

    steps(99, ask=False)
    steps(1, ask=True)
    steps(99, ask=False)
    with pytest.warns(UserWarning, match=r"VSAM: 100 steps in a row took perturbed\(\) without decide\(\)"):
        steps(1, ask=False)
    steps(150, ask=False)
