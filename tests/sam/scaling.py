"""Gradient scalers, and a comparison of gradients."""

import torch


def scaler(scale=2.0**16, **kwargs):
    return torch.amp.GradScaler("cpu", init_scale=scale, **kwargs)


def assert_close(a, b, tolerance):
    for x, y in zip(a, b, strict=True):
        assert (x.double() - y.double()).norm() <= tolerance * y.double().norm()
