"""Training with InfoBatchSampler: the losses it is given, and the weights that it gives."""

import math

import pytest
import torch
import torch.nn.functional as F
from ausam.tables import N, dataset
from baselines.pruned import samples
from device.mode import no_synchronisation
from networks import mlp
from torch.utils.data import DataLoader

from ausam_ext import ADLP, SAM, AUSAMBatchSampler
from ausam_ext.baselines import InfoBatchSampler


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_losses_as_training_has_them(device, dtype, index_dtype):
    """On any device, of any dtype, with a graph; one that is not finite leaves the score as it was."""
    n = 40_000  # above what float16 can count to
    batches = InfoBatchSampler(n, 32, epochs=9)
    index = torch.tensor([39_999, 39_998, 5, 6, 7], dtype=index_dtype)
    loss = torch.tensor([0.5, math.nan, 0.25, math.inf, 2.0], dtype=dtype, device=device, requires_grad=True)
    with no_synchronisation(device):
        batches.update(index, loss * 1)
        batches.update(index.to(device), loss * 1)
    assert not batches.state_dict()["recorded"].requires_grad
    batches.set_epoch(1)
    state = batches.state_dict()
    expected = torch.full((n,), 3.0)
    expected[[39_999, 5, 7]] = torch.tensor([0.5, 0.25, 2.0])
    assert torch.equal(state["scores"], expected) and state["recorded"].isnan().all()
    everything = torch.arange(n, dtype=index_dtype, device=device).view(200, 200)
    batches.weights(everything)  # the first time may bring them there
    with no_synchronisation(device):
        weight = batches.weights(everything)
    assert weight.shape == (200, 200) and weight.dtype == torch.float32 and weight.device == loss.device
    assert sorted(weight.flatten()[[39_999, 5, 7]].tolist()) == [0.0, 0.0, 2.0]
    assert weight.sum() == n - 3 + 2
    assert torch.equal(batches.weights(torch.tensor(6)), torch.tensor(1.0))


def gradient(model, x, y, weight, at=None):
    """Of the weighted mean, at other parameters if given, as one vector."""
    params = dict(model.named_parameters()) if at is None else at
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    loss = F.cross_entropy(torch.func.functional_call(model, params, x), y, reduction="none")
    return dict(zip(params, torch.autograd.grad((weight * loss).mean(), params.values()), strict=True))


@pytest.mark.parametrize("weighted", [0, 1])
def test_sam_with_weights_in_one_pass(weighted):
    """SAM+Info* weighs the first pass, SAM+Info the second: the docstring's loop, each step by hand."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, generator=g, dtype=torch.float64)
    y = torch.randint(0, 3, (N,), generator=g)
    model = mlp(torch.float64)
    sam, optimizer = SAM(model, 0.3), torch.optim.SGD(model.parameters(), 0.1)
    batches = InfoBatchSampler(N, 32, epochs=8)
    loader = DataLoader(dataset(), batch_sampler=batches)
    rate, kept, scores = [], [], {}
    for epoch in range(8):
        batches.set_epoch(epoch)
        for i, (index, _) in enumerate(batches.indexed(loader)):
            rate.append((epoch + i / len(batches)) / 8)
            weight = [torch.ones(len(index)), torch.ones(len(index))]
            weight[weighted] = batches.weights(index)
            g_1 = gradient(model, x[index], y[index], weight[0])
            norm = sum((t**2).sum() for t in g_1.values()).sqrt()
            moved = {name: p + 0.3 * g_1[name] / norm for name, p in model.named_parameters()}
            expected = gradient(model, x[index], y[index], weight[1], moved)

            losses = [F.cross_entropy(model(x[index]), y[index], reduction="none")]
            (weight[0] * losses[0]).mean().backward()
            with sam.perturbed():
                losses.append(F.cross_entropy(model(x[index]), y[index], reduction="none"))
                (weight[1] * losses[1]).mean().backward()
            for name, p in model.named_parameters():
                torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)
            optimizer.step()
            optimizer.zero_grad()
            batches.update(index, losses[weighted])
            scores.update(zip(index.tolist(), losses[weighted].tolist(), strict=True))
        kept.append(len(samples(batches)))  # of the epoch that is next
    assert kept[0] < N and min(kept[:6]) < 0.9 * N and kept[6] == N  # 7 = .875 * 8
    assert rate == sorted(rate) and rate[-1] < 1
    saved = batches.state_dict()["scores"]
    torch.testing.assert_close(saved, torch.tensor([scores[i] for i in range(N)]))


@pytest.mark.parametrize("method", ["SGD", "SAM"])
def test_at_ratio_0_training_is_plain(method):
    """The weights are ones, so that the same batches give the same bits."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(N, 6, generator=g), torch.randint(0, 3, (N,), generator=g)
    trained = []
    for batches in (
        InfoBatchSampler(N, 32, epochs=3, ratio=0, seed=1),
        AUSAMBatchSampler(ADLP(N), 32, alpha=1, seed=1),
    ):
        torch.manual_seed(0)
        model = mlp(torch.float32)
        sam, optimizer = SAM(model, 0.3), torch.optim.SGD(model.parameters(), 0.1)
        for epoch in range(3):
            batches.set_epoch(epoch)
            for index, _ in batches.indexed(DataLoader(dataset(), batch_sampler=batches)):
                loss = F.cross_entropy(model(x[index]), y[index], reduction="none")
                (batches.weights(index) * loss).mean().backward()
                if method == "SAM":
                    with sam.perturbed():
                        F.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
                optimizer.zero_grad()
                if isinstance(batches, InfoBatchSampler):
                    batches.update(index, loss)
        trained.append(list(model.parameters()))
    for p, q in zip(*trained, strict=True):
        assert torch.equal(p, q)
