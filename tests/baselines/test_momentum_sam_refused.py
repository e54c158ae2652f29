"""What Momentum-SAM refuses: steps and blocks inside it, optimizers, arguments, states."""

import pytest
import torch
from baselines.momentum import OPTIMIZERS, step
from networks import assert_untouched, mlp, snapshot
from torch.nn.utils import parametrize

from ausam_ext.baselines import MomentumSAM


def test_a_step_inside_is_refused(backend):
    model = mlp()
    optimizer, other = OPTIMIZERS["SGD"](model.parameters()), mlp(seed=1)
    others = torch.optim.SGD(other.parameters(), lr=0.1)
    msam = MomentumSAM(optimizer)
    for seed in range(2):
        before = snapshot(model)
        with pytest.raises(RuntimeError, match=r"optimizer.step\(\) inside perturbed\(\)"), msam.perturbed():
            step(other, others, None)  # of other weights, it is free
            step(model, optimizer, None, seed)
        assert_untouched(model, before)
        step(model, optimizer, None, seed)  # outside it is free again


def test_a_block_in_a_block_is_refused(backend):
    model = mlp()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    msam = MomentumSAM(optimizer)
    step(model, optimizer, msam)
    before = snapshot(model)
    with (
        pytest.raises(RuntimeError, match=r"perturbed\(\): already inside"),
        msam.perturbed(),
        msam.perturbed(),
    ):
        pass
    assert_untouched(model, before)
    with (
        parametrize.cached(),
        pytest.raises(RuntimeError, match=r"inside parametrize\.cached"),
        msam.perturbed(),
    ):
        pass


@pytest.mark.parametrize("name", ["Adagrad", "Adadelta", "Rprop", "RMSprop"])
def test_an_optimizer_that_keeps_no_momentum(name):
    """Torch's say it at once if momentum is an argument of theirs, else after their first step."""
    model = mlp()
    optimizer = getattr(torch.optim, name)(model.parameters())
    if name == "RMSprop":
        with pytest.raises(ValueError, match=r"optimizer: expected one that keeps momentum.*got momentum=0"):
            MomentumSAM(optimizer)
        return
    step(model, optimizer)
    before = snapshot(model)
    with pytest.raises(TypeError, match=f"optimizer: .*momentum_buffer .* or as exp_avg .*got {name}"):
        step(model, optimizer, MomentumSAM(optimizer))
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: MomentumSAM(m), TypeError, "optimizer: expected a torch.optim.Optimizer, got Sequential"),
        (lambda m: MomentumSAM(torch.optim.LBFGS(m.parameters())), TypeError, "optimizer: LBFGS calls"),
        (lambda m: MomentumSAM(torch.optim.SGD(m.parameters(), lr=0.1)), ValueError, "got momentum=0"),
        (lambda m: MomentumSAM(OPTIMIZERS["SGD"](m.parameters()), -1), ValueError, "rho: expected a finite"),
        (lambda m: MomentumSAM(OPTIMIZERS["SGD"](m.parameters()), "1"), TypeError, "rho: expected a number"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make(mlp())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_an_optimizer_whose_momentum_is_in_other_processes_is_refused(free_port):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    store = torch.distributed.TCPStore("127.0.0.1", free_port, 1, True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        optimizer = ZeroRedundancyOptimizer(mlp().parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
        with pytest.raises(TypeError, match=r"optimizer: .* in each process, got ZeroRedundancyOptimizer"):
            MomentumSAM(optimizer)
    finally:
        torch.distributed.destroy_process_group()


def test_a_radius_that_became_bad_and_a_momentum_that_does_not_fit(backend):
    model = mlp()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    msam = MomentumSAM(optimizer)
    step(model, optimizer, msam)
    before = snapshot(model)
    msam.rho = float("nan")
    with (
        pytest.raises(ValueError, match="rho: expected a finite number not below 0, got nan"),
        msam.perturbed(),
    ):
        pass
    msam.rho = 0.1
    last = list(model.parameters())[-1]
    for wrong, error in ((torch.ones(4), ValueError), (torch.ones(3).half(), TypeError)):
        optimizer.state[last]["momentum_buffer"] = wrong
        with pytest.raises(error, match="grads"), msam.perturbed():
            pass
        assert_untouched(model, before)


def test_a_state_of_another_kind():
    msam = MomentumSAM(OPTIMIZERS["SGD"](mlp().parameters()))
    state = msam.state_dict()
    with pytest.raises(ValueError, match="method: expected a state of MomentumSAM, got one of SAM"):
        msam.load_state_dict({**state, "method": "SAM"})
    with pytest.raises(ValueError, match="version: expected 1, got 2"):
        msam.load_state_dict({**state, "version": 2})
    with pytest.raises(KeyError, match="method"):
        msam.load_state_dict({})
