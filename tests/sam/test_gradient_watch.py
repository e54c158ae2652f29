"""Gradients that are not what a pass takes them for: left from the last step, or clipped in between."""

import pytest
import torch
import torch.nn.functional as F
from networks import assert_untouched, batch, closure_of, mlp, snapshot
from torch import nn

from ausam_ext import SAM, VSAM

METHODS = {"SAM": SAM, "VSAM": lambda m: VSAM(m, warmup_steps=5)}


@pytest.fixture(params=METHODS)
def sam_of(request):
    return METHODS[request.param]


def two_passes(sam, model, x, y):
    closure_of(model, x, y)()
    with sam.perturbed():
        closure_of(model, x, y)()


def forms_of(sam, model, micro, clear, end=lambda: None):
    """Both passes within each micro-batch, in every form; `clear` comes before both, `end` after them."""

    def explicit():
        for x, y in micro:
            clear()
            F.cross_entropy(model(x), y).backward()
            with sam.perturbed():
                F.cross_entropy(model(x), y).backward()
            end()

    def closures():
        for x, y in micro:

            def closure(x=x, y=y):
                clear()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            sam.backward(closure)
            end()

    def several_backward_passes():
        for x, y in micro:
            clear()
            for xs, ys in zip(x.chunk(2), y.chunk(2), strict=True):
                (F.cross_entropy(model(xs), ys) / 2).backward()
            with sam.perturbed():
                for xs, ys in zip(x.chunk(2), y.chunk(2), strict=True):
                    (F.cross_entropy(model(xs), ys) / 2).backward()
            end()

    def clipped_in_between():
        for x, y in micro:
            clear()
            F.cross_entropy(model(x), y).backward()
            with sam.perturbed():
                F.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            end()

    def without_the_last_layer():  # whose gradients stay as they are
        for x, _ in micro:
            clear()
            model[:4](x).square().mean().backward()
            with sam.perturbed():
                model[:4](x).square().mean().backward()

    return [explicit, closures, several_backward_passes, clipped_in_between, without_the_last_layer]


@pytest.mark.parametrize("form", range(5))
def test_two_passes_within_each_micro_batch(sam_of, form):
    """Entering would throw away what the micro-batches before left."""
    model = mlp()
    before, micro = snapshot(model), [batch(seed=i) for i in range(4)]
    sam = sam_of(model)
    with pytest.raises(RuntimeError, match=r"still holds what the last step left .*To accumulate") as refused:
        forms_of(sam, model, micro, lambda: None)[form]()
    assert "for batch in micro_batches" in str(refused.value)
    assert_untouched(model, before)
    model.zero_grad()
    two_passes(sam, model, *micro[0])  # and it goes on


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("stepping", [True, False])
@pytest.mark.parametrize("form", range(4))
def test_cleared_gradients_are_not_refused(sam_of, form, set_to_none, stepping):
    """In place too, and where no optimizer steps: a scaler skips steps, and the loop may."""
    model = mlp()
    sam, optimizer = sam_of(model), torch.optim.SGD(model.parameters(), lr=0.1)

    def clear():
        model.zero_grad(set_to_none)

    micro = [batch(seed=i) for i in range(4)]
    forms_of(sam, model, micro, clear, optimizer.step if stepping else lambda: None)[form]()


def test_a_reuse_within_each_micro_batch():
    model, (x, y) = mlp(), batch()
    vsam = VSAM(model, warmup_steps=1)
    two_passes(vsam, model, x, y)
    closure_of(model, x, y)()
    vsam.reuse_()
    F.cross_entropy(model(x), y).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"reuse_\(\): \.grad still holds"):
        vsam.reuse_()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))


def test_a_step_without_clearing(sam_of):
    model, (x, y) = mlp(), batch()
    optimizer, sam = torch.optim.SGD(model.parameters(), lr=0.1), sam_of(model)
    two_passes(sam, model, x, y)
    optimizer.step()
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match=r"still holds what the last step left"):
        sam.perturbed().__enter__()


@pytest.mark.parametrize("trained", range(3))
def test_an_optimizer_of_a_part_that_leaves_the_other_gradients(sam_of, trained):
    """They would add up, and be in the direction."""
    model, (x, y) = mlp(), batch()
    optimizer, sam = torch.optim.SGD(model[2 * trained].parameters(), lr=0.1), sam_of(model)
    two_passes(sam, model, x, y)
    optimizer.step()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(
        RuntimeError, match=r"still holds .*model\.zero_grad\(\) if the optimizer does not train all"
    ):
        sam.perturbed().__enter__()
    for _ in range(3):
        two_passes(sam, model, x, y)  # which clears all
        optimizer.step()


def test_the_first_closure_does_not_clear_what_was_there(sam_of):
    model, (x, y) = mlp(), batch()
    closure_of(model, x, y)()

    def closure():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"still holds what the last step left"):
        sam_of(model).backward(closure)


def test_gradients_of_the_loop_that_are_the_same_tensors_each_time(sam_of):
    """As a captured graph fills them, of whose writes torch knows nothing."""
    model = mlp()
    sam, optimizer = sam_of(model), torch.optim.SGD(model.parameters(), lr=0.1)
    static = [torch.randn_like(p) for p in model.parameters()]

    def replay():
        for p, g in zip(model.parameters(), static, strict=True):
            p.grad = g

    for _ in range(3):
        replay()
        with sam.perturbed():
            replay()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("write", [lambda p, g: p.grad.copy_(g), lambda p, g: setattr(p, "grad", g)])
def test_gradients_that_the_loop_writes_itself(sam_of, write):
    """As torch.autograd.grad() and torch.func give them, into memory that is the same each time."""
    model, (x, y) = mlp(), batch()
    sam, params = sam_of(model), list(model.parameters())
    for p in params:
        p.grad = torch.zeros_like(p)

    def gradient():
        gs = torch.autograd.grad(F.cross_entropy(model(x), y), params)
        for p, g in zip(params, gs, strict=True):
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            write(p, g)

    kept = None
    for _ in range(3):
        gradient()
        with sam.perturbed():
            gradient()
        kept = kept or [p.grad.clone() for p in params]
        assert all(torch.equal(p.grad, g) for p, g in zip(params, kept, strict=True))


def test_what_is_added_to_the_gradient_before_the_step(sam_of):
    """A penalty, say, whose gradient is not to be perturbed."""
    model, (x, y) = mlp(), batch()
    optimizer, sam = torch.optim.SGD(model.parameters(), lr=0.1), sam_of(model)
    for _ in range(3):
        two_passes(sam, model, x, y)
        sum(p.square().sum() for p in model.parameters()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


CLIPS = {
    "norm": lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.01),
    "norm, not foreach": lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.01, foreach=False),
    "value": lambda m: nn.utils.clip_grad_value_(m.parameters(), 1e-4),
    "by hand": lambda m: [p.grad.mul_(0.1) for p in m.parameters()],
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("reused", [False, True])
def test_vsam_after_clipping_the_first_gradient(clip, reused):
    """The PSF would hold what the clip took away."""
    model, (x, y) = mlp(), batch()
    before, vsam = snapshot(model), VSAM(model, warmup_steps=1)
    if reused:
        two_passes(vsam, model, x, y)
    closure_of(model, x, y)()
    CLIPS[clip](model)
    name = "reuse_" if reused else "perturbed"
    with pytest.raises(RuntimeError, match=rf"{name}\(\): the gradient was made smaller .*clip it after"):
        vsam.reuse_() if reused else vsam.perturbed().__enter__()
    assert_untouched(model, before)
    two_passes(vsam, model, x, y)


def test_vsam_after_a_clip_that_did_nothing_or_an_average_by_hand():
    model, (x, y) = mlp(), batch()
    vsam, other = VSAM(model, warmup_steps=9), mlp(seed=1)
    closure_of(other, x, y)()

    def average():
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.grad.add_(q.grad).div_(2)

    for change in (lambda: nn.utils.clip_grad_norm_(model.parameters(), 1e6), average):
        closure_of(model, x, y)()
        change()
        with vsam.perturbed():
            closure_of(model, x, y)()
            change()


def test_vsam_with_hooks_that_clip_both_gradients():
    """Both passes alike: the PSF is that of what is trained."""
    model, (x, y) = mlp(), batch()
    vsam = VSAM(model, warmup_steps=2)
    for p in model.parameters():
        p.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
    for _ in range(4):
        closure_of(model, x, y)()
        if vsam.decide():
            with vsam.perturbed():
                closure_of(model, x, y)()
        else:
            vsam.reuse_()


def test_sam_after_clipping_the_first_gradient_by_its_norm():
    """Only its direction counts."""
    gradients, (x, y) = [], batch(dtype=torch.float64)
    for clipped in (False, True):
        model = mlp(torch.float64)
        closure_of(model, x, y)()
        if clipped:
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        with SAM(model, 0.5).perturbed():
            closure_of(model, x, y)()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)
