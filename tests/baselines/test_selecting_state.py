"""What ESAM and K-SAM leave as it was: the weights after every pass, and the state of layers."""

import copy

import pytest
import torch
from baselines.selecting import Losses, gradients
from helpers import assert_same_state
from networks import assert_untouched, batch, mlp, snapshot
from sam.layers import LAYERS, network, state_of
from torch import nn


class Stop(Exception):
    pass


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise Stop


@pytest.mark.parametrize("kind", ["forward", "backward", "interrupt"])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_weights_come_back_from_every_pass(backend, make, call, kind):
    """And the step can be taken again: what was drawn for it still is."""
    model, twin = mlp(), mlp()
    model[0].weight.requires_grad_(False), twin[0].weight.requires_grad_(False)
    sam, other, stops = make(model), make(twin), KeyboardInterrupt if kind == "interrupt" else Stop
    for step in range(3):
        losses = Losses(model, *batch(seed=step))

        def failing(positions, losses=losses):
            loss = losses(positions)
            if len(losses.passes) <= call:
                return loss
            if kind == "backward" and torch.is_grad_enabled():
                return FailsBackward.apply(loss)
            raise stops

        before, flags = snapshot(model), [p.requires_grad for p in model.parameters()]
        state = sam.state_dict()
        with pytest.raises(stops):
            sam.backward(failing)
        assert_untouched(model, before)
        assert [p.requires_grad for p in model.parameters()] == flags
        assert_same_state(sam.state_dict(), state)

        other.backward(Losses(twin, *batch(seed=step)))
        sam.backward(losses)
        assert_untouched(model, before)
        assert_same_state(gradients(model), gradients(twin))
        assert torch.equal(sam.positions, other.positions)


def test_weights_in_one_memory_and_gradients_of_an_optimizer(make):
    """Parameters that overlap are one weight; gradients that are parts of a larger tensor stay there."""
    model, twin, batches = mlp(), mlp(), [batch(seed=s) for s in range(4)]
    params = list(model.parameters())
    memory = torch.zeros(sum(p.numel() for p in params))
    for p, part in zip(params, memory.split([p.numel() for p in params]), strict=True):
        p.grad = part.view_as(p)
    steps = [(make(m), m, torch.optim.SGD(m.parameters(), lr=0.2)) for m in (model, twin)]
    for x, y in batches:
        for sam, m, optimizer in steps:
            sam.backward(Losses(m, x, y))
            optimizer.step()
        flat = torch.cat([p.grad.flatten() for p in twin.parameters()])
        assert torch.equal(memory, flat) and memory.any()


# In test_module_state.py: running statistics, observers, code books, queues, buffers that come and go.
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_as_one_pass_on_the_whole_batch_made_them(backend, make, name):
    torch.manual_seed(0)
    model = network(LAYERS[name]())
    plain, sam = copy.deepcopy(model), make(model)
    targets = torch.zeros(16, dtype=torch.int64)
    for i in range(6):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(i))
        plain(x)
        sam.backward(Losses(model, x, targets))
        assert_same_state(state_of(model), state_of(plain))


def test_running_statistics_and_their_count(make):
    """Over training steps, whose weights move; and in evaluation mode nothing moves them."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    sam, optimizer = make(model), torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(5):
        x, y = batch(seed=step)
        expected = copy.deepcopy(model)
        expected(x)
        sam.backward(Losses(model, x, y))
        assert model[1].num_batches_tracked == step + 1
        assert_same_state(state_of(model), state_of(expected))
        optimizer.step()
    model.eval()
    before = copy.deepcopy(state_of(model))
    sam.backward(Losses(model, *batch()))
    assert_same_state(state_of(model), before)


@pytest.mark.parametrize("call", [0, 1, 2])
def test_layers_after_a_pass_that_failed(make, call):
    """As the one pass on the whole batch made them, whichever failed."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    plain, losses = copy.deepcopy(model), Losses(model, *batch())

    def failing(positions):
        loss = losses(positions)
        if len(losses.passes) > call:
            raise Stop
        return loss

    plain(losses.x)
    with pytest.raises(Stop):
        make(model).backward(failing)
    assert_same_state(state_of(model), state_of(plain))
