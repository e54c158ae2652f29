"""What ESAM and K-SAM refuse: losses, forms of a step, the wrong moment, optimizers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from baselines.selecting import METHODS, Losses, gradients
from helpers import assert_same_state
from networks import assert_untouched, batch, mlp, snapshot
from sam.scaling import scaler

from ausam_ext.integrations import SAMOptimizer

K, N = 20, 8  # samples of a batch, and of those that are chosen


# What a user may give, and what is said of it.
ONE = torch.ones(1, requires_grad=True)
BAD = {
    "no function": (
        3,
        TypeError,
        r"losses: expected a function of positions, got 3; write `loss, loss_perturb",
    ),
    "a tensor": (torch.ones(K), TypeError, "losses: expected a function of positions"),
    "a closure": (lambda: ONE.expand(K), TypeError, "losses: expected a function of one argument, positions"),
    "nothing": (lambda positions: None, TypeError, r"losses\(None\): expected a tensor of .*, got None"),
    "integers": (
        lambda positions: torch.ones(K, dtype=torch.int64),
        TypeError,
        r"losses\(None\): expected a",
    ),
    "a mean": (
        lambda positions: ONE.sum(),
        ValueError,
        r'losses\(None\): expected one loss per sample \(reduction="none"\), shape \(K,\), got \(\)',
    ),
    "two dimensions": (lambda positions: ONE.expand(K, 1), ValueError, r"shape \(K,\), got \(20, 1\)"),
    "no sample": (lambda positions: ONE[:0], ValueError, r"shape \(K,\), got \(0,\)"),
    "positions ignored": (
        lambda positions: ONE.expand(K),
        ValueError,
        r"losses\(positions\): expected one loss per sample .*, shape \(8,\), got \(20,\)",
    ),
    "detached": (
        lambda positions: ONE.detach().expand(K if positions is None else N),
        ValueError,
        "losses: expected losses that depend on a weight with requires_grad=True, got none",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_losses(make, name):
    losses, error, match = BAD[name]
    model = mlp()
    sam = make(model)
    if name == "positions ignored" and make is METHODS["ESAM"]:
        losses = Losses(model, *batch())
        ignoring, losses = losses, lambda positions: ignoring(None)
    before, state = snapshot(model), copy.deepcopy(sam.state_dict())
    with pytest.raises(error, match=match):
        sam.backward(losses)
    assert_untouched(model, before)
    assert_same_state(sam.state_dict(), state)
    assert sam.positions is None
    if name != "positions ignored":
        assert all(g is None for g in gradients(model))
    sam.backward(Losses(model, *batch()))


def test_what_is_no_function_of_positions_leaves_the_gradients(make):
    model = mlp()
    sam = make(model)
    sam.backward(Losses(model, *batch()))
    before = [g.clone() for g in gradients(model)]
    for bad in ("no function", "a closure"):
        with pytest.raises(TypeError):
            sam.backward(BAD[bad][0])
    assert_same_state(gradients(model), before)


def test_a_batch_that_changes_its_size():
    """ESAM compares the losses of the same samples."""
    model, sizes = mlp(), [20, 12]
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"losses\(None\) at w \+ e: expected the shape of .*, \(20,\), got \(12,\)"
    ):
        METHODS["ESAM"](model).backward(lambda positions: Losses(model, *batch(sizes.pop(0)))(positions))
    assert_untouched(model, before)


def test_forms_that_do_not_fit(make):
    """Each says what to write."""
    model = mlp()
    sam, before = make(model), snapshot(model)
    F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    with pytest.raises(
        TypeError, match=r"perturbed\(\): .* runs all its passes itself; write `loss, loss_per"
    ):
        sam.perturbed()
    optimizer = SAMOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), sam)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch()[0]), batch()[1])
        loss.backward()
        return loss

    with pytest.raises(
        TypeError, match=r"SAMOptimizer and its closure are not for .*SAM: step the optimizer"
    ):
        optimizer.step(closure)
    assert_untouched(model, before)


def test_the_wrong_moment(make):
    model, scale = mlp(), scaler()
    sam, optimizer = make(model, scaler=scale), torch.optim.SGD(model.parameters(), lr=0.1)
    losses = Losses(model, *batch())
    sam.backward(losses)
    scale.unscale_(optimizer)
    before = [g.clone() for g in gradients(model)]
    with pytest.raises(RuntimeError, match=r"backward\(\): expected scaled gradients"):
        sam.backward(losses)
    assert_same_state(gradients(model), before)


def test_an_optimizer_of_the_other_direction_is_refused(make):
    model = mlp()
    sam = make(model, maximize=True)
    sam.backward(Losses(model, *batch()))
    with pytest.raises(
        RuntimeError, match=r"optimizer.step\(\): expected maximize=True in param_groups\[0\]"
    ):
        torch.optim.SGD(model.parameters(), lr=0.1).step()
