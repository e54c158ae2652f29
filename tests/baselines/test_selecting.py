"""What ESAM and K-SAM have in common: passes, their cost, and what they return."""

import pytest
import torch
from baselines.selecting import METHODS, Losses, gradients
from device.mode import no_synchronisation
from helpers import assert_same_state, same_bits
from networks import batch, mlp
from torch.utils._python_dispatch import TorchDispatchMode

from ausam_ext import SAM
from ausam_ext.baselines import ESAM, KSAM

K, N = 20, 8  # samples of a batch, and of those that are chosen
INF = float("inf")


@pytest.mark.parametrize(
    "make", [lambda m: ESAM(m, 0.3, beta=1.0, gamma=1.0), lambda m: KSAM(m, 0.3, k_ratio=1.0)]
)
def test_with_all_tensors_and_samples_it_is_sam_bit_for_bit(make, backend):
    ours, plain = mlp(), mlp()
    sams = make(ours), SAM(plain, 0.3)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.2, momentum=0.9) for m in (ours, plain)]
    for step in range(5):
        losses, other = Losses(ours, *batch(seed=step)), Losses(plain, *batch(seed=step))

        def closure(other=other):
            plain.zero_grad()
            loss = other(None)
            loss.mean().backward()
            return loss

        for a, b in zip(sams[0].backward(losses), sams[1].backward(closure), strict=True):
            assert same_bits(a, b)
        assert all(map(same_bits, gradients(ours), gradients(plain)))
        for optimizer in optimizers:
            optimizer.step()
    assert all(map(same_bits, ours.parameters(), plain.parameters()))


def test_passes_and_what_is_returned(make):
    """On which samples, and whether with a gradient; test_cost.py counts what they compute."""
    model = mlp()
    sam, losses = make(model), Losses(model, *batch())
    loss, loss_perturbed = sam.backward(losses)
    whole, chosen = None, sam.positions.tolist()
    expected = [(whole, True), (whole, False), (chosen, True)]
    if make is METHODS["KSAM"]:
        expected = [(whole, False), (chosen, True), (chosen, True)]
    assert [(p if p is None else p.tolist(), grad) for p, _, grad in losses.passes] == expected
    assert loss.shape == (K,) and loss_perturbed.shape == sam.positions.shape == (N,)
    assert not (loss.requires_grad or loss_perturbed.requires_grad)


@pytest.mark.parametrize(
    ("share", "size", "expected"),
    [(0.29, 100, 29), (0.01, 100, 2), (0.5, 7, 3), (0.5, 1, 1), (0.1, 2, 2), (1.0, 5, 5), (1 / 3, 9, 3)],
)
def test_how_many_samples_are_chosen(share, size, expected):
    """0.29 * 100 is 28.999999999999996; batch normalisation refuses a batch of one."""
    for make in (lambda m: ESAM(m, gamma=share), lambda m: KSAM(m, k_ratio=share)):
        sam = make(mlp())
        sam.backward(Losses(sam.model, *batch(size)))
        assert len(sam.positions) == expected and torch.equal(sam.positions, sam.positions.unique())


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_gradients_of_an_earlier_step_do_not_add_up(make, optimizer):
    """Whether the loop clears them or not, or never steps."""
    loops = [(make(m), m, optimizer(m.parameters(), lr=0.02)) for m in (mlp(), mlp())]
    for step in range(12):
        for sam, model, base in loops:
            sam.backward(Losses(model, *batch(seed=step)))
            if step % 4 != 2:
                base.step()
            if sam is loops[0][0]:
                base.zero_grad(set_to_none=step % 2 == 0)
    assert_same_state(*(model.state_dict() for _, model, _ in loops))


class Waits(TorchDispatchMode):
    """Notes the calls that on a GPU wait for it, whatever the tensors."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "equal.default", "unique")):
            self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device(device, make):
    model, (x, y) = mlp().to(device), batch()
    losses = Losses(model, x.to(device), y.to(device))
    sam = make(model)
    sam.backward(losses)
    with no_synchronisation(device), Waits() as waits:
        for _ in range(5):
            sam.backward(losses)
    assert not waits.seen
