"""Running statistics come only from the first pass, for every layer that tracks them."""

import pytest
import torch
from helpers import same_bits
from torch import nn

from ausam_ext import SAM


class CustomNorm(nn.Module):
    """Not a torch class: an extra statistic, and one that is replaced instead of changed in place."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        dims = [d for d in range(x.dim()) if d != 1]
        mean, var = x.mean(dims), x.var(dims)
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var = torch.lerp(self.running_var, var, 0.1)
                self.steps += 1
        shape = [1, -1] + [1] * (x.dim() - 2)
        return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * self.weight.view(shape)


LAYERS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), (8, 4)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), (8, 4, 3, 3)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4), (8, 4, 2, 3, 3)),
    "cumulative": (lambda: nn.BatchNorm2d(4, momentum=None), (8, 4, 3, 3)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (8, 4, 3, 3)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True), (8, 4, 5)),
    "LazyBatchNorm2d": (lambda: nn.LazyBatchNorm2d(), (8, 4, 3, 3)),
    "custom": (lambda: CustomNorm(4), (8, 4, 3)),
    "untracked": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (8, 4, 3, 3)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), (8, 4, 3)),
}


def buffers(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(same_bits(a[name], b[name]) for name in a)


@pytest.mark.parametrize("layer", LAYERS)
def test_statistics_are_those_of_plain_training(backend, layer):
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    plain, ours = (nn.Sequential(make(), nn.Flatten(), nn.LazyLinear(3)) for _ in range(2))
    for model in (plain, ours):
        model(torch.randn(shape))  # lazy layers take shape
    ours.load_state_dict(plain.state_dict())
    sam = SAM(ours, rho=1.0)
    for _ in range(3):
        x = torch.randn(shape) * 2 + 1
        plain(x)
        ours.zero_grad()
        ours(x).square().mean().backward()
        with sam.perturbed():
            ours(x).square().mean().backward()
        assert_same(buffers(ours), buffers(plain))


def test_the_second_pass_normalises_with_its_batch():
    """Frozen statistics must not mean evaluation mode: the perturbed loss is a training loss."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    x = torch.randn(16, 4) * 5
    model(x).pow(4).mean().backward()
    with SAM(model, rho=1e-6).perturbed():
        inside = model(x)
        inside.pow(4).mean().backward()
    torch.testing.assert_close(inside.mean(0), torch.zeros(4), atol=1e-4, rtol=0)


def test_after_an_exception_training_goes_on_right(backend):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    ours = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    ours.load_state_dict(plain.state_dict())
    sam = SAM(ours, rho=1.0)
    x = torch.randn(8, 4)
    ours(x).square().mean().backward()
    plain(x)
    with pytest.raises(ZeroDivisionError), sam.perturbed():
        ours(x * 100)
        _ = 1 / 0
    assert_same(buffers(ours), buffers(plain))
    ours.zero_grad()
    ours(x).square().mean().backward()
    plain(x)
    with sam.perturbed():
        ours(x).square().mean().backward()
    assert_same(buffers(ours), buffers(plain))


def test_a_layer_in_evaluation_mode_keeps_what_it_had():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval())
    model[1].running_mean.fill_(3)
    x = torch.randn(8, 4)
    model(x).square().mean().backward()
    with SAM(model).perturbed():
        model(x).square().mean().backward()
        model[1].running_mean.fill_(4)
    assert model[1].running_mean.tolist() == [3] * 4
