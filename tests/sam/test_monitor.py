"""Monitor says what happened in the steps since it was last asked, and waits for the device only then."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler, Monitor


def linear(seed=0):
    """``mean((x w - y)^2)``, of which all gradients are known: ``2 x^T (x w - y) / n``."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 3, generator=generator))
    return model, torch.randn(8, 3, generator=generator), torch.randn(8, generator=generator)


def losses_of(model, x, y):
    return (model(x).squeeze(1) - y).square()


def gradient(w, x, y):
    return 2 * x.T @ (x @ w - y) / len(y)


def step(sam, optimizer, x, y, reduced=False):
    """Returns what the closure form does, and in float64 what it should be at ``w``."""

    def closure():
        optimizer.zero_grad()
        losses = losses_of(sam.model, x, y)
        losses.mean().backward()
        return losses.mean() if reduced else losses

    w, x64, y64 = sam.model.weight.detach()[0].double().clone(), x.double(), y.double()
    found = sam.backward(closure)
    optimizer.step()
    return found, w, x64, y64


@pytest.mark.parametrize("reduced", [False, True])
def test_sam_loss_sharpness_and_norm_are_means_over_steps(reduced):
    model, x, y = linear()
    optimizer, sam = torch.optim.SGD(model.parameters(), 0.05), SAM(model, rho=0.3)
    monitor, expected = Monitor(sam), []
    for part in (slice(0, 8), slice(0, 4), slice(2, 8)):
        found, w, x64, y64 = step(sam, optimizer, x[part], y[part], reduced)
        g = gradient(w, x64, y64)
        before, after = ((x64 @ v - y64).square().mean() for v in (w, w + 0.3 * g / g.norm()))
        expected.append(torch.stack([before, after - before, g.norm()]))
        monitor.update(*found)
    seen = monitor.compute()
    assert list(seen) == ["loss", "sharpness", "grad_norm"]
    assert list(seen.values()) == pytest.approx(torch.stack(expected).mean(0).tolist(), rel=1e-5)


def test_each_call_of_compute_begins_anew():
    model, x, y = linear()
    optimizer, sam = torch.optim.SGD(model.parameters(), 0.05), SAM(model)
    monitor = Monitor(sam)
    assert monitor.compute() == {}
    for _ in range(3):
        monitor.update(*step(sam, optimizer, x, y)[0])
    monitor.compute()
    found, *_ = step(sam, optimizer, x, y)
    monitor.update(*found)
    assert monitor.compute()["loss"] == pytest.approx(found[0].mean().item())


def test_what_is_updated_later_does_not_change_what_was_added():
    """As losses of a captured step, which every replay writes to again."""
    model, _, _ = linear()
    monitor, loss = Monitor(SAM(model)), torch.tensor(2.0)
    monitor.update(loss)
    loss.fill_(4.0)
    monitor.update(loss)
    loss.fill_(100.0)
    assert monitor.compute() == {"loss": 3.0}


def test_vsam_psf_rate_and_share_of_second_passes():
    torch.manual_seed(0)
    model, x, y = linear()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    vsam = VSAM(model, rho=0.3, alpha=0.0, window=10, initial_samples=4, warmup_steps=0)
    monitor, expected = Monitor(vsam), []
    for _ in range(10):
        found, w, x64, y64 = step(vsam, optimizer, x, y)
        monitor.update(*found)
        if vsam.sampled:
            g = gradient(w, x64, y64)
            psf = (gradient(w + 0.3 * g / g.norm(), x64, y64) - g).norm()
            expected.append(torch.stack([g.norm(), psf, psf / g.norm()]))
    seen = monitor.compute()
    assert seen["second_passes"] == 0.4 == seen["rate"]
    assert [seen[k] for k in ("grad_norm", "psf_norm", "psf_ratio")] == pytest.approx(
        torch.stack(expected).mean(0).tolist(), rel=1e-4
    )


def test_steps_with_one_pass_leave_out_what_they_do_not_know():
    model, x, y = linear()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    vsam = VSAM(model, alpha=0.0, window=10, initial_samples=1, warmup_steps=0, seed=1)
    monitor = Monitor(vsam)
    (loss, perturbed), *_ = step(vsam, optimizer, x, y)
    assert perturbed is None
    monitor.update(loss, perturbed)
    assert monitor.compute() == pytest.approx({"loss": loss.mean().item(), "second_passes": 0, "rate": 0.1})


@pytest.mark.parametrize("kind", [SAM, VSAM])
def test_norms_are_those_of_unscaled_gradients(kind):
    model, x, y = linear()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    options = {} if kind is SAM else {"warmup_steps": 5}
    optimizer, sam = torch.optim.SGD(model.parameters(), 0.0), kind(model, scaler=scaler, **options)
    monitor = Monitor(sam)

    def closure():
        optimizer.zero_grad()
        losses = losses_of(model, x, y)
        scaler.scale(losses.mean()).backward()
        return losses

    monitor.update(*sam.backward(closure))
    w, x64, y64 = model.weight.detach()[0].double(), x.double(), y.double()
    g = gradient(w, x64, y64)
    seen = monitor.compute()
    assert seen["grad_norm"] == pytest.approx(g.norm().item(), rel=1e-5)
    if kind is VSAM:
        psf = (gradient(w + 0.05 * g / g.norm(), x64, y64) - g).norm().item()
        assert seen["psf_norm"] == pytest.approx(psf, rel=1e-4)


def test_ausam_scores_are_those_of_visited_samples_and_s_max_of_the_epoch():
    adlp = ADLP(100)
    batches = AUSAMBatchSampler(adlp, 10, s_min=0.2, s_max=0.8, warmup_epochs=4)
    monitor = Monitor(SAM(linear()[0]), batches)
    assert monitor.compute() == pytest.approx({"s_max": 0.2, "visited": 0})
    adlp.update(torch.arange(11), torch.zeros(11), torch.arange(11.0))
    adlp.update(torch.tensor([50]), torch.zeros(1), torch.tensor([float("inf")]))  # tried only
    batches.set_epoch(2)
    values = {"min": 0.0, "10%": 1.0, "median": 5.0, "90%": 9.0, "max": 10.0}
    expected = {"s_max": 0.5, "visited": 0.11} | {f"adlp_{k}": v for k, v in values.items()}
    assert monitor.compute() == pytest.approx(expected, rel=1e-6)
    batches.set_epoch(9)
    assert monitor.compute()["s_max"] == pytest.approx(0.8)


def test_quantiles_of_a_table_too_large_for_torch():
    """torch.quantile refuses more than 16 million."""
    adlp = ADLP(1 << 25)
    adlp.total.copy_(torch.arange(len(adlp)))
    adlp.count.fill_(1)
    seen = Monitor(SAM(linear()[0]), AUSAMBatchSampler(adlp, 10)).compute()
    assert seen["adlp_median"] == pytest.approx(len(adlp) / 2, rel=1e-4) and seen["visited"] == 1


class Synchronisations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "update() waits for the device"
        return func(*args, **(kwargs or {}))


def test_update_does_not_wait_for_the_device():
    model, x, y = linear()
    optimizer, vsam = torch.optim.SGD(model.parameters(), 0.05), VSAM(model, warmup_steps=9)
    monitor = Monitor(vsam)
    found, *_ = step(vsam, optimizer, x, y)
    with Synchronisations():
        monitor.update(*found)
        monitor.update(found[0])
    with pytest.raises(AssertionError, match="waits"), Synchronisations():
        monitor.compute()


def test_bad_input():
    model, *_ = linear()
    with pytest.raises(TypeError, match="sam: expected a SAM or VSAM, got Linear"):
        Monitor(model)
    with pytest.raises(TypeError, match="batches: expected an AUSAMBatchSampler or None, got 3"):
        Monitor(SAM(model), 3)
