"""The operators as torch knows them: schemas, kernels in plain PyTorch, and what tracing sees.

Importing this registers them; :mod:`ausam_ext.ops` has the functions to call.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend, reference
from . import accepted

_LIBRARY = torch.library.Library("ausam_ext", "DEF")
_SCHEMAS = """
dlp(Tensor loss, Tensor loss_perturbed) -> Tensor
adlp_update_(Tensor(a!) total, Tensor(b!) count, Tensor index, Tensor loss, Tensor loss_perturbed, *, Tensor(c!)? invalid=None, Tensor(d!)? tried=None) -> ()
subset_sample(Tensor scores, int k, *, float s_min, float s_max, Tensor noise) -> Tensor
adlp_sample(Tensor total, Tensor count, Tensor index, int k, *, float s_min, float s_max, Tensor noise, Tensor(a!)? invalid=None, Tensor? tried=None) -> Tensor
subset_weights(Tensor scores, Tensor positions, Tensor noise, *, float s_min, float s_max) -> Tensor
sliced_variance(Tensor norms, int slices) -> Tensor
permute(Tensor position, int n, int[] keys) -> Tensor
perturb_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] backups, float rho, *, bool adaptive=False, bool maximize=False, Tensor? norm=None) -> Tensor
restore_(Tensor(a!)[] params, Tensor[] backups) -> ()
psf_capture_(Tensor(a!)[] psf, Tensor[] grads, *, int? norm_last=None) -> (Tensor psf_norm, Tensor sgd_norm)
psf_reuse_(Tensor(a!)[] grads, Tensor[] psf, Tensor scale, *, Tensor? limit=None) -> ()
"""  # noqa: E501


def _scalar(tensors: Sequence[Tensor]) -> Tensor:
    device = tensors[0].device if tensors else "cpu"
    return torch.empty((), dtype=reference.accumulation_dtype(tensors), device=device)


def _positions(rows: Tensor, k: int) -> Tensor:
    return rows.new_empty((*rows.shape[:-1], k), dtype=torch.int64)


# What tracing sees in place of a result.
_FAKE: dict[str, Callable[..., Any]] = {
    "dlp": lambda loss, _: loss.new_empty(loss.shape, dtype=reference.accumulation_dtype([loss])),
    "adlp_update_": lambda *_, **__: None,
    "subset_sample": lambda scores, k, **_: _positions(scores, k),
    "adlp_sample": lambda total, count, index, k, **_: _positions(index, k),
    "subset_weights": lambda scores, positions, *_, **__: positions.new_empty(
        positions.shape, dtype=torch.float32
    ),
    "sliced_variance": lambda norms, _: norms.new_empty(()),
    "permute": lambda position, *_: position.new_empty(position.shape),
    "perturb_": lambda params, *_, **__: _scalar(params),
    "restore_": lambda *_: None,
    "psf_capture_": lambda psf, *_, **__: (_scalar(psf), _scalar(psf)),
    "psf_reuse_": lambda *_, **__: None,
}


def _define(schema: str) -> None:
    _LIBRARY.define(schema)
    name = schema[: schema.index("(")]
    check, kernel, fake = getattr(accepted, name), getattr(reference, name), _FAKE[name]

    def default(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        backend.warn_of_reference(args[0])
        with torch.no_grad():
            return kernel(*args, **kwargs)

    def traced(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return fake(*args, **kwargs)

    _LIBRARY.impl(name, default, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")  # no gradient flows
    torch.library.register_fake(f"ausam_ext::{name}", traced, lib=_LIBRARY)


for _schema in _SCHEMAS.strip().splitlines():
    _define(_schema)
STAMP = hashlib.sha256(_SCHEMAS.encode()).hexdigest()  # in kernels built for these (build_tools/cuda.py)
backend.load(STAMP)
_OPS = {name: getattr(torch.ops.ausam_ext, name).default for name in _FAKE}


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    """Runs an operator; explains with a typed error what a compiled kernel refused."""
    try:
        return _OPS[name](*args, **kwargs)
    except RuntimeError:
        getattr(accepted, name)(*args, **kwargs)  # says what is wrong, if the arguments are
        raise
