"""Whole objects on the device: training loops, the sampler, states that move between devices."""

import copy

import pytest
import torch
import torch.nn.functional as F
from device.mode import no_synchronisation
from device.training import AUSAM, N, VSAMTraining, run, tensors
from helpers import same_bits
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler
from ausam_ext.sharding import global_norm

OTHERS = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def test_steps_do_not_wait_for_the_device(device):
    ausam, vsam = AUSAM(device), VSAMTraining(device)
    for training in (ausam, vsam):
        training.load(0)
        training.step()
    with no_synchronisation(device):
        for _ in range(5):
            ausam.step()
            vsam.sampled_step()
            vsam.reuse_step()


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_gradient_is_that_of_the_cpu(device, adaptive):
    gradients = []
    for where in ("cpu", device):
        training = AUSAM(where)
        training.load(0)
        before = [p.clone() for p in training.model.parameters()]
        sam = SAM(training.model, 0.1, adaptive=adaptive)
        training.losses().mean().backward()
        with sam.perturbed():
            training.losses().mean().backward()
        assert all(map(same_bits, training.model.parameters(), before))
        gradients.append([p.grad.cpu() for p in training.model.parameters()])
    norm = global_norm(gradients[0])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() <= 1e-4 * norm


def table(device):
    adlp = ADLP(N, device)
    index = torch.arange(N).repeat(3)
    loss = torch.rand(3 * N, generator=torch.Generator().manual_seed(2))
    adlp.update(index[:200], torch.zeros(200, device=device), loss[:200].to(device))
    return adlp


def test_the_sampler_plans_the_same_epochs_on_every_device(device):
    plans = []
    for where in ("cpu", device):
        batches = AUSAMBatchSampler(table(where), 20, alpha=0.3, warmup_epochs=3)
        plans.append([])
        for epoch in range(4):
            batches.set_epoch(epoch)
            plans[-1].append(list(batches))
    assert plans[0] == plans[1] and plans[0][2] != plans[0][3]


def test_ausam_loop(device):
    training = AUSAM(device)
    batches = AUSAMBatchSampler(training.adlp, 20, alpha=0.5)
    data = TensorDataset(*(t.cpu() for t in training.data))
    loader = DataLoader(data, batch_sampler=batches)
    losses = []
    for _ in range(12):
        for index, (x, y) in batches.indexed(loader):
            assert index.device.type == device
            training.index, training.x, training.y = index, x.to(device), y.to(device)
            losses.append(training.step().mean())
    assert torch.stack(losses[-5:]).mean() < 0.7 * torch.stack(losses[:5]).mean()
    assert training.adlp.count.sum() == N + 11 * (4 * 10 + 8)
    training.adlp.check()


def test_an_index_outside_is_reported_with_the_next_plan(device):
    adlp = ADLP(N, device)
    loss = torch.ones(2, device=device)
    if device == "cpu":
        with pytest.raises(IndexError, match="index"):
            adlp.update(torch.tensor([0, N]), loss, loss + 1)
        return
    adlp.update(torch.tensor([0, N]), loss, loss + 1)
    with pytest.raises(IndexError, match="1 entries"):
        list(AUSAMBatchSampler(adlp, 20))


def test_an_index_that_comes_to_a_table_on_the_host_has_arrived(device):
    """The device is kept busy, so that a copy which is not waited for would come later."""
    adlp, index = ADLP(N), torch.arange(N, device=device)
    loss = torch.rand(N)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)
    adlp.update(index.flip(0), torch.zeros(N), loss)
    assert torch.equal(adlp.total, loss.flip(0)) and (adlp.count == 1).all()


@pytest.mark.parametrize("other", OTHERS)
def test_states_move_between_devices(device, other):
    """What is loaded elsewhere is the same state; from there on both train alike, up to rounding."""
    here, there = VSAMTraining(device), VSAMTraining(other)
    for i in range(17):
        here.load(i)
        here.step()
    assert any(psf is not None for psf in here.vsam._psf)
    for name in ("model", "optimizer", "vsam"):
        getattr(there, name).load_state_dict(copy.deepcopy(getattr(here, name).state_dict()))
    for a, b in zip(tensors(here.vsam.state_dict()), tensors(there.vsam.state_dict()), strict=True):
        assert same_bits(a.cpu(), b.cpu())
    for i in range(17, 23):
        assert here.vsam.decide() == there.vsam.decide()
        run(here, [i], here.step)
        run(there, [i], there.step)
    for a, b in zip(here.state(), there.state(), strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-3, atol=1e-3)
    saved, moved = table(device), ADLP(N, other)
    moved.load_state_dict(saved.state_dict())
    assert same_bits(moved.total.cpu(), saved.total.cpu()) and torch.equal(
        moved.count.cpu(), saved.count.cpu()
    )
    assert moved.to(device).device.type == device


def test_gradient_scaler_and_autocast(device):
    """float16 as it is trained: scaled losses of both passes, an overflow that skips the step."""
    training = AUSAM(device)
    training.load(0)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**8)
    sam = SAM(training.model, 0.1, scaler=scaler)
    before = [p.clone() for p in training.model.parameters()]
    for factor in (1.0, float("inf")):
        training.optimizer.zero_grad()
        for perturbed in (False, True):
            with sam.perturbed() if perturbed else no_synchronisation("cpu"):
                with torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16):
                    loss = F.cross_entropy(training.model(training.x), training.y) * factor
                scaler.scale(loss).backward()
        assert bool(sam.overflow) == (factor != 1.0)
        scaler.unscale_(training.optimizer)
        scaler.step(training.optimizer)
        scaler.update()
        after = [p.clone() for p in training.model.parameters()]
        assert all(map(same_bits, before, after)) == (factor != 1.0)
        before = after


def test_vsam_reuses_what_was_captured_on_the_device(device):
    training = VSAMTraining(device)
    vsam = VSAM(training.model, 0.2, gamma=0.5, warmup_steps=1)
    training.load(0)
    training.losses().mean().backward()
    with vsam.perturbed():
        training.losses().mean().backward()
    sam = [p.grad.clone() for p in training.model.parameters()]
    training.optimizer.zero_grad()
    training.losses().mean().backward()
    sgd = [p.grad.clone() for p in training.model.parameters()]
    vsam.reuse_()
    for p, a, b in zip(training.model.parameters(), sam, sgd, strict=True):
        torch.testing.assert_close(p.grad, b + 0.5 * (a - b))
