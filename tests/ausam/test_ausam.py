"""AUSAM as a whole: the sampler, the table and SAM in one training loop."""

import torch
import torch.nn.functional as F
from helpers import same_bits
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, AUSAMBatchSampler

N = 150


def setting():
    torch.manual_seed(0)
    x = torch.randn(N, 6)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
    return data, model, SAM(model, rho=0.1), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def test_alpha_one_is_sam_on_the_same_batches_bit_for_bit(backend):
    data, ausam_model, sam, optimizer = setting()
    adlp = ADLP(N)
    batches = AUSAMBatchSampler(adlp, 32, alpha=1.0, seed=4)
    order = [torch.tensor([i for row in rows for i in row]) for rows in epochs_of(batches, 3)]
    loader = DataLoader(data, batch_sampler=batches)
    torch.manual_seed(1)
    for epoch in range(3):
        batches.set_epoch(epoch)
        for index, (x, y) in batches.indexed(loader):
            loss = F.cross_entropy(ausam_model(x), y, reduction="none")
            loss.mean().backward()
            with sam.perturbed():
                loss_perturbed = F.cross_entropy(ausam_model(x), y, reduction="none")
                loss_perturbed.mean().backward()
            adlp.update(index, loss, loss_perturbed)
            optimizer.step()
            optimizer.zero_grad()

    data, sam_model, sam, optimizer = setting()
    torch.manual_seed(1)
    for permutation in order:
        for rows in BatchSampler(permutation.tolist(), 32, drop_last=False):
            x, y = data[rows]
            loss = F.cross_entropy(sam_model(x), y, reduction="none")
            loss.mean().backward()
            with sam.perturbed():
                F.cross_entropy(sam_model(x), y, reduction="none").mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    ours, theirs = ausam_model.state_dict(), sam_model.state_dict()
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)
    assert adlp.count.unique().tolist() == [3]


def epochs_of(batches, epochs):
    rows = []
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        rows.append(list(batches))
    batches.set_epoch(0)
    return rows


def test_samples_whose_loss_moves_more_are_trained_on_more(backend):
    data, model, sam, optimizer = setting()
    adlp = ADLP(N)
    batches = AUSAMBatchSampler(adlp, 50, alpha=0.5, warmup_epochs=0)
    loader = DataLoader(data, batch_sampler=batches)
    for _ in range(30):
        for index, (x, y) in batches.indexed(loader):
            loss = F.cross_entropy(model(x), y, reduction="none")
            loss.mean().backward()
            with sam.perturbed():
                loss_perturbed = F.cross_entropy(model(x), y, reduction="none")
                loss_perturbed.mean().backward()
            adlp.update(index, loss, loss_perturbed)
            optimizer.step()
            optimizer.zero_grad()
    assert adlp.count.sum() == 30 * 75 + 75
    visits = adlp.count[adlp.mean().argsort()].float()
    assert visits[-N // 4 :].mean() > visits[: N // 4].mean() + 5


def test_a_closure_that_returns_one_buffer_for_both_losses():
    """As with micro-batches, or the output of a captured graph: the DLP is that of copies."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3), torch.randn(32, 6), torch.randint(0, 3, (32,))
    sam, adlp, losses, seen = SAM(model, rho=0.5), ADLP(32), torch.empty(32), []

    def closure():
        model.zero_grad()
        for part in torch.arange(32).split(8):
            loss = F.cross_entropy(model(x[part]), y[part], reduction="none")
            (loss.sum() / 32).backward()
            losses[part] = loss.detach()
        seen.append(losses.clone())
        return losses

    index = torch.arange(32)
    adlp.update(index, *sam.backward(closure))
    assert torch.equal(adlp.mean(), (seen[1] - seen[0]).abs())
    assert adlp.mean().min() > 0
