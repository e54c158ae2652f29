"""HRNet-W32 from timm: what is asked of timm, and what is said if it cannot be imported."""

import sys
import types

import pytest
import torch
from helpers import same_bits
from torch import nn

from benchmarks.pose import simcc
from benchmarks.pose.backbones import HRNetW32


class Fake(nn.Module):
    """timm's network, as far as HRNetW32 looks into it."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps
        self.stage4 = nn.Sequential(nn.Identity(), nn.Module())
        self.stage4[-1].fuse_layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(4))

    def forward(self, images):
        return [self.maps]


def test_hrnet_asks_timm_for_the_maps_of_highest_resolution(monkeypatch):
    calls, maps = [], torch.randn(1, 32, 4, 4)
    timm = types.SimpleNamespace(create_model=lambda *a, **k: (calls.append((a, k)), Fake(maps))[1])
    monkeypatch.setitem(sys.modules, "timm", timm)
    backbone = HRNetW32(pretrained=True)
    assert calls == [
        (
            ("hrnet_w32",),
            {"pretrained": True, "features_only": True, "feature_location": "", "out_indices": (1,)},
        )
    ]
    assert same_bits(backbone(torch.empty(0)), maps) and len(backbone.network.stage4[-1].fuse_layers) == 1


def test_hrnet_of_timm():
    """28,535,552 weights, as in the original network for poses before its last layer; all are used."""
    pytest.importorskip("timm")
    model = simcc.SimCC(HRNetW32(), HRNetW32.channels, (64, 64))
    assert sum(p.numel() for p in model.backbone.parameters()) == 28_535_552
    x, y = model(torch.randn(2, 3, 64, 64))
    (x.square().mean() + y.square().mean()).backward()
    assert x.shape == y.shape == (2, 16, 128) and all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError("No module named 'timm'"), RuntimeError("torchvision::nms does not exist")],
)
def test_hrnet_without_timm_says_what_to_install(monkeypatch, error):
    """The second is what a torchvision that was built for another torch raises."""

    def fail(name):
        raise error

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(ImportError, match=r"HRNetW32: expected that timm .*; install timm") as caught:
        HRNetW32()
    assert str(error) in str(caught.value)
