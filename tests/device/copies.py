"""Copies on the device, and the tensors of nested values."""

import torch
from torch.utils._pytree import tree_leaves, tree_map_only


def on(device, values):
    """Copies on the device, that nothing is recorded of."""
    return tree_map_only(torch.Tensor, lambda t: t.detach().clone().to(device), values)


def tensors(values):
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


def fill(targets, sources):
    for t, s in zip(tensors(targets), tensors(sources), strict=True):
        t.copy_(s)
