"""Arguments for every operator."""

import torch
from helpers import exponential


def table():
    return torch.rand(20), torch.randint(0, 3, (20,), dtype=torch.int32)


def losses(dtype=torch.float32):
    """As training has them: part of a graph."""
    x = torch.randn(7, dtype=dtype, requires_grad=True)
    return x * 2, x * 3


def lists(dtype=torch.float32):
    params = [torch.randn(3, 4, dtype=dtype).t(), torch.randn(5, dtype=dtype), torch.empty(0, dtype=dtype)]
    return params, [torch.randn_like(p) for p in params], [torch.empty_like(p) for p in params]


def invalid():
    return torch.zeros((), dtype=torch.int32)


def tried():
    return torch.randint(0, 2, (20,), dtype=torch.uint8)


def sample_inputs(name, dtype=torch.float32):
    """Arguments for torch.ops.ausam_ext.<name>: one set of samples for every test of this module."""
    index, rows = torch.randint(0, 20, (7,)), torch.randint(0, 20, (3, 8), dtype=torch.int32)
    weights = {"s_min": 0.1, "s_max": 1.0, "noise": exponential(3, 8)}
    params, grads, backups = lists(dtype)
    return {
        "dlp": [(losses(dtype), {})],
        "adlp_update_": [
            ((*table(), index, *losses(dtype)), {}),
            ((*table(), index, *losses(dtype)), {"invalid": invalid()}),
            ((*table(), index, *losses(dtype)), {"tried": tried()}),
            ((*table(), index, *losses(dtype)), {"invalid": invalid(), "tried": tried()}),
        ],
        "subset_sample": [((torch.rand(3, 8), 4), weights)],
        "adlp_sample": [
            ((*table(), rows, 4), weights),
            ((*table(), rows, 4), {**weights, "invalid": invalid()}),
            ((*table(), rows, 4), {**weights, "invalid": invalid(), "tried": tried()}),
        ],
        "subset_weights": [((torch.rand(3, 8), torch.tensor([[0, 3, 7], [1, 2, 3], [0, 4, 6]])), weights)],
        "sliced_variance": [((torch.rand(53), 5), {})],
        "permute": [((torch.randint(0, 70, (9, 2))[:, 1], 70, list(range(8))), {})],
        "perturb_": [
            ((params, grads, backups, 0.1), {"adaptive": False}),
            ((params, grads, backups, 0.1), {"adaptive": True}),
            ((params, grads, backups, 0.1), {"maximize": True}),
            ((params, grads, backups, 0.1), {"norm": torch.tensor(2.0)}),
        ],
        "restore_": [((params, grads), {})],
        "psf_capture_": [((params, grads), {"norm_last": None}), ((params, grads), {"norm_last": 2})],
        "psf_reuse_": [
            ((params, grads, torch.tensor(0.5)), {}),
            ((params, grads, torch.tensor(0.5)), {"limit": torch.tensor(1e3)}),
        ],
    }[name]


NAMES = (
    "dlp",
    "adlp_update_",
    "subset_sample",
    "adlp_sample",
    "subset_weights",
    "sliced_variance",
    "permute",
    "perturb_",
    "restore_",
    "psf_capture_",
    "psf_reuse_",
)
