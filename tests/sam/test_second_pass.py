"""What the second pass has of the first: dropout masks if asked for, recomputed activations, no graph."""

import pytest
import torch
import torch.nn.functional as F
from networks import batch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ausam_ext import SAM, VSAM

METHODS = {"SAM": lambda m: SAM(m, 0.0), "VSAM": lambda m: VSAM(m, 0.0, warmup_steps=2)}


def dropout_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 32), nn.Dropout1d(0.3), nn.Linear(32, 3)
    )


def accumulating(model, x, y, parts):
    def closure():
        model.zero_grad()
        losses = []
        for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
            losses.append(F.cross_entropy(model(xs), ys, reduction="none"))
            losses[-1].mean().backward()
        return torch.cat(losses)

    return closure


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parts", [1, 4])
def test_the_same_masks_in_both_passes_if_asked_for(method, parts):
    """At rho = 0 only the masks can make the losses differ."""
    model = dropout_network()
    sam, closure = METHODS[method](model), accumulating(model, *batch(n=20), parts)
    loss, loss_perturbed = sam.backward(closure, same_masks=True)
    assert torch.equal(loss, loss_perturbed)
    loss, loss_perturbed = sam.backward(closure)  # as published
    assert not torch.equal(loss, loss_perturbed)


def test_the_next_step_has_masks_of_its_own():
    model = dropout_network()
    sam, closure = SAM(model, 0.1), accumulating(model, *batch(n=20), 1)
    first, _ = sam.backward(closure, same_masks=True)
    second, _ = sam.backward(closure, same_masks=True)
    assert not torch.equal(first, second)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.middle = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 16))
        self.use_reentrant = use_reentrant

    def forward(self, x):
        x = torch.tanh(self.first(x))
        if self.use_reentrant is None:
            x = self.middle(x)
        else:
            x = checkpoint(self.middle, x, use_reentrant=self.use_reentrant)
        return self.last(x)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("make", [lambda m: SAM(m, 0.5), lambda m: VSAM(m, 0.5, warmup_steps=2)])
def test_recomputed_activations_are_those_of_the_pass(use_reentrant, make):
    """Those of the first pass at w, those of the second at w + epsilon, with the masks of either."""
    x, y = batch(n=20)
    gradients = []
    for mode in (None, use_reentrant):
        model = Checkpointed(mode)
        sam = make(model)
        torch.manual_seed(1)
        for _ in range(4):
            sam.backward(accumulating(model, x, y, 1))
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_statistics_with_checkpointing_are_those_of_plain_training_with_it(use_reentrant):
    x = torch.randn(20, 6)
    layers = [nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    plain, ours = layers
    sam = SAM(ours, 0.5)
    for _ in range(3):
        inputs = x.clone().requires_grad_()
        ours.zero_grad()
        checkpoint(plain, inputs, use_reentrant=use_reentrant).square().mean().backward()
        checkpoint(ours, inputs, use_reentrant=use_reentrant).square().mean().backward()
        with sam.perturbed():
            checkpoint(ours, inputs, use_reentrant=use_reentrant).square().mean().backward()
    for a, b in zip(ours.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)


def test_the_graph_of_the_first_pass_is_refused_in_the_second():
    """Its saved weights are gone: autograd must notice, not give the gradient of neither."""
    model, (x, y) = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), batch()
    loss = F.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"), SAM(model).perturbed():
        loss.backward()
