"""What torch expects of an operator: opcheck, tracing, version counters, no gradient, no alias."""

import pytest
import torch
from ops.samples import NAMES, lists, sample_inputs
from torch.library import opcheck

from ausam_ext import ops

OPS = torch.ops.ausam_ext
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


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
