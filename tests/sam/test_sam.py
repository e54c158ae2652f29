"""SAM: the gradient it leaves, and that the weights come back on every way out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state, same_bits
from networks import TwoHeads, assert_untouched, batch, closure_of, mlp, snapshot
from sam.oracle import sam_gradient_float64
from torch import nn

from ausam_ext import SAM, VSAM, ops


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("rho", "adaptive"), [(0.05, False), (2.0, False), (0.5, True)])
def test_gradient_equals_an_independent_float64_sam(backend, dtype, tolerance, rho, adaptive):
    model, (x, y) = mlp(dtype), batch(dtype=dtype)
    SAM(model, rho, adaptive=adaptive).backward(closure_of(model, x, y))
    got = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    exact = sam_gradient_float64(model, x, y, rho, adaptive)
    assert (got - exact).norm() <= tolerance * exact.norm()
    plain = sam_gradient_float64(model, x, y, 0.0, adaptive)
    assert (exact - plain).norm() > 100 * tolerance * exact.norm()  # the perturbation is seen


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    lambda p: torch.optim.RMSprop(p, lr=1e-3, foreach=True),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_rho_zero_is_the_base_optimizer_bit_for_bit(backend, make):
    plain, ours = mlp(), mlp()
    optimizers, sam = [make(plain.parameters()), make(ours.parameters())], SAM(ours, rho=0.0)
    for step in range(5):
        x, y = batch(seed=step)
        closure_of(plain, x, y)()
        loss, loss_perturbed = sam.backward(closure_of(ours, x, y))
        assert torch.equal(loss, loss_perturbed)
        for optimizer in optimizers:
            optimizer.step()
    assert all(same_bits(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))


def test_explicit_form_and_closure_agree_bit_for_bit(backend):
    a, b, (x, y) = mlp(), mlp(), batch()
    loss, loss_perturbed = SAM(a).backward(closure_of(a, x, y))
    explicit = F.cross_entropy(b(x), y, reduction="none")
    explicit.mean().backward()
    with SAM(b).perturbed():
        assert all(p.grad is None for p in b.parameters())
        explicit_perturbed = F.cross_entropy(b(x), y, reduction="none")
        explicit_perturbed.mean().backward()
    assert torch.equal(loss, explicit) and torch.equal(loss_perturbed, explicit_perturbed)
    assert not loss.requires_grad and not loss_perturbed.requires_grad
    assert (loss_perturbed.mean() > loss.mean()).item()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_closure_runs_with_gradients_also_under_no_grad():
    model, (x, y) = mlp(), batch()
    with torch.no_grad():
        SAM(model).backward(closure_of(model, x, y))
    assert all(p.grad is not None for p in model.parameters())


class Stop(Exception):
    pass


def leave_normally(sam, work):
    with sam.perturbed():
        work()


def leave_by_exception(sam, work):
    with pytest.raises(Stop), sam.perturbed():
        work()
        raise Stop


def leave_by_break(sam, work):
    for _ in range(2):
        with sam.perturbed():
            work()
            break


def leave_by_return(sam, work):
    def inner():
        with sam.perturbed():
            return work()

    inner()


def leave_by_dropping_a_generator(sam, work):
    def steps():
        with sam.perturbed():
            work()
            yield

    iterator = steps()
    next(iterator)
    del iterator


@pytest.mark.parametrize(
    "leave",
    [leave_normally, leave_by_exception, leave_by_break, leave_by_return, leave_by_dropping_a_generator],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_way_out_restores_the_bits_in_the_same_storage(backend, leave, dtype):
    model, (x, y) = mlp(dtype), batch(dtype=dtype)
    with torch.no_grad():
        model[0].weight[0, 0] = -0.0
    before, moved = snapshot(model), []
    F.cross_entropy(model(x), y).backward()

    def work():
        moved.append(
            [not torch.equal(p, value) for p, (_, value) in zip(model.parameters(), before, strict=True)]
        )
        F.cross_entropy(model(x), y).backward()

    leave(SAM(model, rho=0.5), work)
    assert any(moved[0])
    assert_untouched(model, before)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("method", [SAM, lambda m, rho, **kw: VSAM(m, rho, warmup_steps=5, **kw)])
def test_an_interrupt_at_the_ascent_itself(monkeypatch, method, grouped, when):
    """Ctrl-C arrives as an exception at the end of an operator. The copies of the step before, which a
    restored weight must not come from, are of other weights."""
    model, (x, y) = mlp(), batch()
    model.insert(1, nn.BatchNorm1d(16))
    sam = method(model, 0.5, groups=[{"params": model[0].parameters(), "rho": 0.7}] if grouped else ())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sam.backward(closure_of(model, x, y))
    optimizer.step()
    closure_of(model, x, y)()
    before, statistics = snapshot(model), copy.deepcopy(model[1].state_dict())
    perturb_ = ops.perturb_

    def interrupted(*args, **kwargs):
        if when == "after":
            perturb_(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(ops, "perturb_", interrupted)
    with pytest.raises(KeyboardInterrupt), sam.perturbed():
        pytest.fail("not entered")
    assert_untouched(model, before)
    assert_same_state(model[1].state_dict(), statistics)
    monkeypatch.undo()
    sam.backward(closure_of(model, x, y))  # and it goes on
    assert_untouched(model, before)


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a"), ("a", "a")])
def test_a_parameter_without_gradient_in_one_pass_comes_back(backend, first, second):
    model, (x, y) = TwoHeads(), batch()
    before, sam = snapshot(model), SAM(model, rho=1.0)
    F.cross_entropy(model(x, first), y).backward()
    with sam.perturbed():
        F.cross_entropy(model(x, second), y).backward()
    assert_untouched(model, before)
    heads = {"a": model.a.weight.grad is not None, "b": model.b.weight.grad is not None}
    assert heads == {"a": second == "a", "b": second == "b"}


def test_frozen_parameters_stay_and_others_are_perturbed(backend):
    model, (x, y) = mlp(), batch()
    model[0].requires_grad_(False)
    before = snapshot(model)
    F.cross_entropy(model(x), y).backward()
    with SAM(model, rho=1.0).perturbed():
        assert same_bits(model[0].weight, before[0][1])
        assert not same_bits(model[2].weight, before[2][1])
        F.cross_entropy(model(x), y).backward()
    assert_untouched(model, before)


def test_tied_parameters_are_perturbed_once(backend):
    model, (x, _) = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), batch()
    model[1].weight = model[0].weight
    before = snapshot(model)
    (model(x) ** 2).mean().backward()
    g = torch.cat([p.grad.flatten() for p in model.parameters()])
    with SAM(model, rho=1.0).perturbed():
        moved = torch.cat([(p - v).flatten() for p, (_, v) in zip(model.parameters(), before, strict=True)])
        torch.testing.assert_close(moved, g / g.norm(), rtol=1e-4, atol=1e-6)
        (model(x) ** 2).mean().backward()
    assert_untouched(model, before)


def test_channels_last_parameters(backend):
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    before, x = snapshot(model), torch.randn(2, 3, 8, 8)
    model(x).square().mean().backward()
    with SAM(model, rho=1.0).perturbed():
        model(x).square().mean().backward()
    assert_untouched(model, before)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_an_empty_batch_perturbs_nothing(backend):
    model, (x, y) = mlp(), batch(n=0)
    before = snapshot(model)
    F.cross_entropy(model(x), y).backward()  # the mean of nothing: NaN gradients
    with SAM(model).perturbed():
        assert_untouched(model, before)
        F.cross_entropy(model(x), y).backward()
    assert_untouched(model, before)


@pytest.mark.parametrize("make", [SAM, lambda m: VSAM(m, warmup_steps=5)])
def test_nesting_is_refused_and_leaves_the_outer_one_intact(backend, make):
    model, (x, y) = mlp(), batch()
    before, sam = snapshot(model), make(model)
    F.cross_entropy(model(x), y).backward()
    with sam.perturbed():
        F.cross_entropy(model(x), y).backward()
        inside = [p.detach().clone() for p in model.parameters()]
        with pytest.raises(RuntimeError, match="already inside"), sam.perturbed():
            pass
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), inside, strict=True))
    assert_untouched(model, before)


@pytest.mark.parametrize("make", [SAM, lambda m: VSAM(m, warmup_steps=5)])
def test_without_a_backward_pass_it_is_refused(make):
    model = mlp()
    with pytest.raises(RuntimeError, match="call backward"), make(model).perturbed():
        pass


def test_a_sparse_gradient_is_refused_by_name_before_anything_changes(backend):
    model = nn.Embedding(5, 3, sparse=True)
    before = snapshot(model)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"grads\[0\].*sparse"), SAM(model).perturbed():
        pass
    assert_untouched(model, before)
    assert model.weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": [torch.zeros(3)]}, TypeError, "model: .*list"),
        ({"rho": -1.0}, ValueError, "rho: .*-1"),
        ({"rho": float("nan")}, ValueError, "rho: .*nan"),
        ({"rho": "0.05"}, TypeError, "rho: .*'0.05'"),
        ({"adaptive": 1}, TypeError, "adaptive: .*1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SAM(**{"model": mlp(), **arguments})


def test_a_closure_that_returns_nothing_is_refused():
    model, (x, y) = mlp(), batch()
    before = snapshot(model)
    with pytest.raises(TypeError, match=r"closure: .*None"):
        SAM(model).backward(lambda: F.cross_entropy(model(x), y).backward())
    assert_untouched(model, before)


@pytest.mark.parametrize("make", [SAM, lambda m: VSAM(m, warmup_steps=5)])
def test_a_model_may_be_converted_between_steps(backend, make):
    """The copies of weights and statistics follow its dtype and its shapes."""
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    sam, (x, y) = make(model), batch()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model.to(dtype)
        before = snapshot(model)
        sam.backward(closure_of(model, x.to(dtype), y))
        assert_untouched(model, before)
    model[2].weight.data, model[2].bias.data = torch.randn(5, 4).to(dtype), torch.randn(5).to(dtype)
    before = snapshot(model)
    sam.backward(closure_of(model, x.to(dtype), y))
    assert_untouched(model, before)
