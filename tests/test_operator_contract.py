"""What torch expects of an operator: opcheck, tracing, version counters, no gradient, no alias."""

import pytest
import torch
from helpers import exponential
from torch.library import opcheck

from ausam_ext import ops

OPS = torch.ops.ausam_ext
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


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


def test_every_operator_is_covered():
    defined = {
        name.split("::")[1]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("ausam_ext::")
    }
    assert defined == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(name, dtype):
    for args, kwargs in sample_inputs(name, dtype):
        opcheck(getattr(OPS, name).default, args, kwargs)


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return [copied(v) for v in value] if isinstance(value, (list, tuple)) else value


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in flat(v)] if isinstance(value, (list, tuple)) else []


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_graph_break_to_the_same(name):
    torch.compiler.reset()
    function = getattr(ops, name)
    for args, kwargs in sample_inputs(name):
        eager_args, compiled_args = copied(args), copied(args)
        eager = function(*eager_args, **kwargs)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*compiled_args, **kwargs)
        for a, b in zip(flat([eager, eager_args]), flat([compiled, compiled_args]), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_inductor_compiles_a_step_of_operators():
    params, grads, backups = lists()
    psf = [g.clone() for g in grads]
    expected = copied(params)

    @torch.compile(fullgraph=True)
    def step():
        norm = ops.perturb_(params, grads, backups, 0.1)
        psf_norm, _ = ops.psf_capture_(psf, grads)
        ops.restore_(params, backups)
        ops.psf_reuse_(grads, psf, 0.5)
        return norm + psf_norm

    assert step().item() == pytest.approx(torch.cat([g.flatten() for g in grads]).norm().item())
    assert all(torch.equal(p, e) for p, e in zip(params, expected, strict=True))


MUTATED = {  # positions and names of what each operator changes
    "adlp_update_": (0, 1, "invalid", "tried"),
    "adlp_sample": ("invalid",),
    "perturb_": (0, 2),
    "restore_": (0,),
    "psf_capture_": (0,),
    "psf_reuse_": (0,),
}


@pytest.mark.parametrize("name", NAMES)
def test_version_counters_are_bumped_where_changed_and_only_there(backend, name):
    for args, kwargs in sample_inputs(name):
        args = copied(args)
        versions = [(key, t, t._version) for key, v in [*enumerate(args), *kwargs.items()] for t in flat(v)]
        getattr(ops, name)(*args, **kwargs)
        for key, t, before in versions:
            assert (t._version > before) == (key in MUTATED.get(name, ())), key


def test_autograd_notices_a_saved_weight_that_was_perturbed(backend):
    w = torch.randn(3, requires_grad=True)
    loss = (w * w).sum()
    ops.perturb_([w], [torch.ones(3)], [torch.empty(3)], 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_flows(backend, name):
    """Also not through parameters, which are leaves that require grad: they stay so."""
    for args, kwargs in sample_inputs(name):
        for t in flat([a for a in args if isinstance(a, list)]):
            t.requires_grad_()
        inputs = [(t, t.requires_grad, t.is_leaf) for t in flat(args)]
        assert not any(t.requires_grad for t in flat([getattr(ops, name)(*args, **kwargs)]))
        for t, requires_grad, is_leaf in inputs:
            assert (t.requires_grad, t.is_leaf) == (requires_grad, is_leaf)


def test_results_are_not_views_of_arguments(backend):
    a, b = torch.zeros(3), torch.ones(3)
    d = ops.dlp(a, b)
    d += 5
    assert a.tolist() == [0, 0, 0] and b.tolist() == [1, 1, 1]


def test_noise_is_drawn_from_the_default_generator_too(backend):
    scores = torch.rand(4, 50)
    torch.manual_seed(3)
    first = ops.subset_sample(scores, 20)
    second = ops.subset_sample(scores, 20)
    torch.manual_seed(3)
    assert torch.equal(ops.subset_sample(scores, 20), first) and not torch.equal(first, second)
