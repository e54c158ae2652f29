"""torch.set_default_dtype and torch.set_default_device change nothing that is not left to them."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_unchanged
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler, RateController, ops
from ausam_ext.permutation import draw_keys

N = 203


def data():
    on_cpu = {"dtype": torch.float32, "device": "cpu"}
    index = torch.arange(N, device="cpu")
    return index, torch.zeros(N, **on_cpu), torch.linspace(0, 1, N, **on_cpu)


@pytest.mark.parametrize("workers", [0, 1])
def test_table_and_batches(default, backend, workers):
    def work():
        adlp = ADLP(N, device="cpu")
        adlp.update(*data(), skip=torch.zeros((), dtype=torch.bool, device="cpu"))
        adlp.update(*data())
        batches = AUSAMBatchSampler(adlp, 32, warmup_epochs=2)
        loader = DataLoader(TensorDataset(data()[0]), batch_sampler=batches, num_workers=workers)
        batches.set_epoch(1)
        before, seen = torch.get_rng_state(), []
        for index, _ in batches.indexed(loader):
            adlp.update(index, *(loss[index] for loss in data()[1:]))
            seen.append(index)
        assert torch.equal(torch.get_rng_state(), before)
        seen.append(batches.select(torch.arange(20, device="cpu")))
        again = ADLP(N, device="cpu")
        again.load_state_dict(adlp.state_dict())
        return {"seen": seen, "mean": again.mean(), "some": again.mean(seen[0]), **adlp.state_dict()}

    assert_unchanged(work, default)


def test_rate_controller(default, backend):
    def work():
        numbers, tensors = RateController(10, 2, 0.5), RateController(10, 2, 0.5)
        for i in range(15):
            numbers.observe(i + 1.0, 2.0)
            tensors.observe(*(torch.tensor(x, dtype=torch.float32, device="cpu") for x in (i + 1.0, 2.0)))
        again = RateController(10, 2, 0.5)
        again.load_state_dict(numbers.state_dict())
        return [numbers.update(), tensors.update(), again.update(), numbers.state_dict()]

    assert_unchanged(work, default)


def test_permutations(default, backend):
    def work():
        keys = draw_keys(torch.Generator("cpu").manual_seed(0))
        return ops.permute(torch.arange(1000, dtype=torch.int64, device="cpu"), 1000, keys)

    assert_unchanged(work, default)


def test_operators_that_draw_noise_or_take_a_number(default, backend):
    def work():
        _, low, scores = data()
        generator = torch.Generator("cpu").manual_seed(0)
        gradient = scores.clone()
        ops.psf_reuse_([gradient], [scores], 0.5)
        return [
            ops.subset_sample(scores, 20, generator=generator),
            ops.adlp_sample(
                scores, torch.ones_like(scores, dtype=torch.int32), data()[0], 20, generator=generator
            ),
            ops.dlp(low, scores),
            ops.sliced_variance(scores, 5),
            gradient,
        ]

    assert_unchanged(work, default)


@pytest.mark.parametrize("method", ["SAM", "groups", "VSAM", "scaler"])
def test_training(default, backend, method):
    def work():
        with torch.device("cpu"):
            torch.manual_seed(0)
            layers = [nn.Linear(6, 8, dtype=torch.float32), nn.BatchNorm1d(8, dtype=torch.float32)]
            model = nn.Sequential(*layers, nn.Linear(8, 3, dtype=torch.float32))
            x, y = torch.randn(40, 6, dtype=torch.float32), torch.randint(0, 3, (40,))
            scaler = torch.amp.GradScaler("cpu", enabled=method == "scaler")
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        groups = [{"params": model[0].parameters(), "rho": 0.5}] if method == "groups" else ()
        if method == "VSAM":
            sam = VSAM(model, 0.1, window=10, slices=2, initial_samples=4, warmup_steps=3)
        else:
            sam = SAM(model, 0.1, groups=groups, scaler=scaler)

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y, reduction="none")
            scaler.scale(loss.mean()).backward()
            return loss

        losses = []
        for step in range(25):
            losses.append(sam.backward(closure, same_masks=step == 3))
            scaler.step(optimizer)
            scaler.update()
            sam.load_state_dict(sam.state_dict())
        return {"losses": losses, "model": dict(model.state_dict()), "sam": sam.state_dict()}

    assert_unchanged(work, default)


def test_lists_of_nothing(default, backend):
    def work():
        return [ops.perturb_([], [], [], 0.1), *ops.psf_capture_([], [])]

    assert_unchanged(work, default)
