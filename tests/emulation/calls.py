"""Calls of operators on an emulated library."""

import torch
from emulation.mode import run

OPS = torch.ops.ausam_ext
TABLE = 90  # tensors of one launch (kMaxTensors of csrc/cuda/list.cuh before CUDA 12.1)


def caller(library):
    return lambda name, *args, **kwargs: run(library, getattr(OPS, name).default, (args, kwargs))


def lists(call, name, depth, tensors, *rest, dtypes=(torch.float32,)):
    made = [[torch.randn(3, dtype=dtypes[i % len(dtypes)]) for i in range(tensors)] for _ in range(depth)]
    call(name, *made, *rest)
