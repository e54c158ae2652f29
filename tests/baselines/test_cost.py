"""What each method computes in an epoch: forwards, backwards and samples, counted on a network.

A forward pass of a whole batch costs 1, a backward pass 2: half of it for the weights' gradients, half for
the activations'. So SGD costs 3 and SAM 6 in an iteration; a pass on a part of the batch costs that part.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler
from ausam_ext.baselines import (
    AESAM,
    ESAM,
    KSAM,
    MESA,
    SAF,
    InfoBatchSampler,
    LookSAM,
    MomentumSAM,
    PeriodicSAM,
    RandomizedSAM,
)

K, T = 20, 50  # samples of a batch, batches of an epoch
WHOLE = K * T


class Counted(nn.Module):
    """Counts what it computes, in samples; ``weights`` is the share of the tensors that got a gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3)
        )
        self.forward_samples = self.backward_samples = self.evaluated = 0
        self.passes = {"forward": 0, "backward": 0}
        self.weights, tensors = 0.0, len(list(self.parameters()))
        self.rows = 0
        for p in self.parameters():
            p.register_hook(lambda g: setattr(self, "weights", self.weights + self.rows / tensors))

    def forward(self, x):
        out, rows = self.layers(x), len(x)
        self.forward_samples += rows
        self.passes["forward"] += 1

        def backward(_):
            self.backward_samples += rows
            self.passes["backward"] += 1
            self.rows = rows

        if out.requires_grad:
            out.register_hook(backward)
        return out

    def cost(self):
        """Of an iteration."""
        return (self.forward_samples + self.backward_samples + self.weights) / WHOLE


def images():
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(WHOLE, 6, generator=g), torch.randint(0, 3, (WHOLE,), generator=g))


def run(make, loader=None):
    """An epoch; ``make`` gives what is done with a batch, from the model and its optimizer."""
    model = Counted()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    step = make(model, optimizer)
    index = torch.arange(WHOLE).split(K)
    taken = 0
    for i, (x, y) in zip(index, DataLoader(images(), K), strict=True):
        taken += bool(step(i, x, y))
        optimizer.step()
        optimizer.zero_grad()
    return model, taken


def closure_of(model, optimizer, x, y):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def by_closure(make):
    def made(model, optimizer):
        sam = make(model)
        return lambda i, x, y: sam.backward(closure_of(model, optimizer, x, y))[1] is not None

    return made


def by_losses(make):
    def made(model, optimizer):
        sam = make(model)

        def step(i, x, y):
            def losses(positions):
                rows = slice(None) if positions is None else positions
                return F.cross_entropy(model(x[rows]), y[rows], reduction="none")

            sam.backward(losses)

        return step

    return made


def plain(model, optimizer):
    return lambda i, x, y: F.cross_entropy(model(x), y).backward()


def momentum(model, optimizer):
    msam = MomentumSAM(optimizer)

    def step(i, x, y):
        with msam.perturbed():
            F.cross_entropy(model(x), y).backward()

    return step


def saf(model, optimizer):
    term = SAF(WHOLE, 3, delay=1, start_epoch=0)
    term.set_epoch(1)

    def step(i, x, y):
        logits = model(x)
        (F.cross_entropy(logits, y) + term.penalty(i, logits)).backward()

    return step


def mesa(model, optimizer):
    term = MESA(model, start_epoch=0)
    term.set_epoch(1)
    evaluated = []
    averaged = next(m for m in vars(term).values() if isinstance(m, torch.optim.swa_utils.AveragedModel))
    averaged.module.layers.register_forward_hook(lambda m, args, out: evaluated.append(len(args[0])))

    def step(i, x, y):
        before = len(evaluated)
        logits = model(x)
        (F.cross_entropy(logits, y) + term.penalty(logits, x)).backward()
        model.forward_samples += sum(evaluated[before:])
        model.passes["forward"] += len(evaluated) - before

    return step


EXACT = {
    "SGD": (plain, 3.0, (T, T)),
    "SAM": (by_closure(SAM), 6.0, (2 * T, 2 * T)),
    "SAM-5": (by_closure(PeriodicSAM), 3.6, (T + 10, T + 10)),
    "SAM-10": (by_closure(lambda m: PeriodicSAM(m, every=10)), 3.3, (T + 5, T + 5)),
    "LookSAM-5": (by_closure(LookSAM), 3.6, (T + 10, T + 10)),
    "K-SAM, 1/2": (by_losses(KSAM), 4.0, (3 * T, 2 * T)),
    "K-SAM, 1/4": (by_losses(lambda m: KSAM(m, k_ratio=0.25)), 2.5, (3 * T, 2 * T)),
    "ESAM, all tensors": (by_losses(lambda m: ESAM(m, beta=1.0, gamma=0.5)), 5.5, (3 * T, 2 * T)),
    "Momentum-SAM": (momentum, 3.0, (T, T)),
    "SAF": (saf, 3.0, (T, T)),
    "MESA": (mesa, 4.0, (2 * T, T)),
}


@pytest.mark.parametrize("method", EXACT)
def test_cost(method):
    make, cost, (forwards, backwards) = EXACT[method]
    model, _ = run(make)
    assert model.cost() == pytest.approx(cost)
    assert model.passes == {"forward": forwards, "backward": backwards}


SAMPLED = {
    "RST": lambda m: RandomizedSAM(m, seed=1),
    "G-RST": lambda m: RandomizedSAM(m, rate=0.3, weight=2.0),
    "AE-SAM": lambda m: AESAM(m, total_steps=T),
    "vSAM": lambda m: VSAM(m, warmup_steps=5, initial_rate=0.34),
}


@pytest.mark.parametrize("method", SAMPLED)
def test_cost_by_the_second_passes_that_were_taken(method):
    model, taken = run(by_closure(SAMPLED[method]))
    assert 5 < taken < 45
    assert model.cost() == pytest.approx(3 * (1 + taken / T))
    assert model.passes == {"forward": T + taken, "backward": T + taken}


def test_cost_of_esam_by_the_tensors_that_were_drawn():
    """5.0 in expectation for beta = gamma = 1/2: 1 + 1 + 1/2, 1, and 3 for half of the batch."""
    model, _ = run(by_losses(lambda m: ESAM(m, beta=0.5, gamma=0.5)))
    drawn = model.weights / WHOLE - 0.5  # of all tensors in the first pass
    assert drawn == pytest.approx(0.5, abs=0.1)
    assert model.cost() == pytest.approx(4.5 + drawn)
    assert model.passes == {"forward": 3 * T, "backward": 2 * T}


def test_cost_of_ausam():
    """Half of SAM's."""
    model, sam_of = Counted(), {}
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    adlp = ADLP(WHOLE)
    batches = AUSAMBatchSampler(adlp, K, alpha=0.5, full_epochs=0)
    sam_of["sam"] = SAM(model)
    for index, (x, y) in batches.indexed(DataLoader(images(), batch_sampler=batches)):
        adlp.update(index, *by_sample(sam_of["sam"], model, optimizer, x, y))
        optimizer.step()
    assert model.cost() == pytest.approx(3.0)
    assert adlp.count.sum() == WHOLE / 2


def by_sample(sam, model, optimizer, x, y):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y, reduction="none")
        loss.mean().backward()
        return loss

    return sam.backward(closure)


@pytest.mark.parametrize(("sam", "cost"), [(False, 3.0), (True, 6.0)])
def test_cost_of_infobatch(sam, cost):
    """Less what is pruned: half of the samples below the mean score."""
    model = Counted()
    optimizer, method = torch.optim.SGD(model.parameters(), 0.05), SAM(model)
    batches = InfoBatchSampler(WHOLE, K, epochs=10)
    loader = DataLoader(images(), batch_sampler=batches)
    scores = {}
    for epoch in range(2):
        model.forward_samples = model.backward_samples = 0
        model.weights = 0.0
        if epoch:
            below = sum(s < sum(scores.values()) / WHOLE for s in scores.values())
        batches.set_epoch(epoch)
        for index, (x, y) in batches.indexed(loader):
            weights = batches.weights(index)

            def closure(x=x, y=y, weights=weights):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y, reduction="none")
                (loss * weights).mean().backward()
                return loss.detach()

            loss = method.backward(closure)[0] if sam else closure()
            batches.update(index, loss)
            scores |= dict(zip(index.tolist(), loss.tolist(), strict=True))
            optimizer.step()
        if not epoch:
            assert model.cost() == pytest.approx(cost)
    assert 300 < below < 700
    assert model.cost() == pytest.approx(cost * (1 - (below - below // 2) / WHOLE))
