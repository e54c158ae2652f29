"""Parameters that are parts of one tensor."""

import torch
from torch import nn


class Fused(nn.Module):
    """Parameters that are parts of one tensor: `spans` as slices of it, or as functions that view it."""

    def __init__(self, numel, views):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.flat = torch.randn(numel, generator=g, dtype=torch.float64)
        self.parts = nn.ParameterList([nn.Parameter(view(self.flat)) for view in views])
        for part, view in zip(self.parts, views, strict=True):
            part.data = view(self.flat)

    def forward(self, x):
        return sum(((i + 1) * p.flatten() * x[: p.numel()]).sin().sum() for i, p in enumerate(self.parts))


CASES = {
    "one tensor twice": (12, [lambda f: f.view(3, 4), lambda f: f.view(3, 4)]),
    "transposed": (12, [lambda f: f.view(3, 4), lambda f: f.view(3, 4).t()]),
    "overlapping slices": (20, [lambda f: f[:9], lambda f: f[5:14], lambda f: f[12:]]),
    "one within another": (20, [lambda f: f, lambda f: f[4:8].view(2, 2)]),
    "columns in turn": (24, [lambda f: f.view(4, 6)[:, ::2], lambda f: f.view(4, 6)[:, 1::2]]),
    "every second, and a part of all": (20, [lambda f: f[::2], lambda f: f[3:9]]),
    "apart": (20, [lambda f: f[:10], lambda f: f[10:]]),
}
