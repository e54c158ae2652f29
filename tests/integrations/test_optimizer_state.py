"""SAMOptimizer kept and brought back: state_dict(), torch.distributed.checkpoint, pickle, copies."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers import assert_same_state
from integrations.loops import METHODS, same_weights, sgd, zeroing
from networks import assert_untouched, batch, mlp, snapshot
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from ausam_ext import SAM
from ausam_ext.integrations import SAMOptimizer


def pickled(x):
    return pickle.loads(pickle.dumps(x))


def saved_and_loaded(x):
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


DUPLICATES = [copy.deepcopy, pickled, saved_and_loaded]


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_saved_run_goes_on_bit_for_bit(method, stop):
    """Moments, and for vSAM the PSF, the rate and the decisions; read back as `weights_only`."""
    (x, y), make = batch(), lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, amsgrad=True)
    whole = mlp()
    optimizer = SAMOptimizer(make(whole), method(whole))
    for step in range(10):
        if step == stop:
            file = io.BytesIO()
            torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
        optimizer.step(zeroing(optimizer, whole, x, y))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = mlp(seed=5)
    other = SAMOptimizer(make(resumed), method(resumed))
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert_same_state(other.state_dict(), saved["optimizer"])
    for _ in range(stop, 10):
        other.step(zeroing(other, resumed, x, y))
    assert same_weights(resumed, whole)
    assert_same_state(other.state_dict(), optimizer.state_dict())


def test_a_state_without_that_of_vsam_is_refused():
    model = mlp()
    optimizer = SAMOptimizer(sgd(model), METHODS["VSAM"](model))
    with pytest.raises(KeyError, match="sam: the state of VSAM is missing"):
        optimizer.load_state_dict(sgd(model, lr=7.0).state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.1
    plain = SAMOptimizer(sgd(model), SAM(model))
    plain.load_state_dict(sgd(model, lr=7.0).state_dict())  # SAM itself has none
    assert plain.param_groups[0]["lr"] == 7.0


@pytest.mark.parametrize("other", ["optimizer", "sam"])
def test_a_state_that_one_of_both_refuses_changes_neither(other):
    """An optimizer of other groups; a VSAM of another window."""
    model, (x, y) = mlp(), batch()
    optimizer, source = (SAMOptimizer(sgd(model), METHODS["VSAM"](model)) for _ in range(2))
    for o in (optimizer, source, source):
        o.step(zeroing(o, model, x, y))
    state = copy.deepcopy(source.state_dict())
    if other == "optimizer":
        state["param_groups"].append({**state["param_groups"][0], "params": []})
    else:
        state["sam"]["controller"]["observed"] = state["sam"]["controller"]["observed"][:3]
    before, groups, moments = copy.deepcopy(optimizer.state_dict()), optimizer.param_groups, optimizer.state
    with pytest.raises(ValueError, match="number of parameter groups" if other == "optimizer" else "window"):
        optimizer.load_state_dict(state)
    assert_same_state(optimizer.state_dict(), before)
    assert optimizer.param_groups is groups and optimizer.state is moments


@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_copies_are_adapters_too(method, duplicate):
    model, (x, y) = mlp(), batch()
    optimizer = SAMOptimizer(sgd(model), method(model))
    optimizer.step(zeroing(optimizer, model, x, y))
    other, twin = duplicate((model, optimizer))
    assert twin.sam.model is other and twin.param_groups[0]["params"][0] is other[0].weight
    for _ in range(4):
        optimizer.step(zeroing(optimizer, model, x, y))
        twin.step(zeroing(twin, other, x, y))
    assert same_weights(model, other)


@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_copies_made_after_a_scheduler_step_weights_of_their_own(method, duplicate):
    """The scheduler replaces step() of the object that it is given; so may anyone. A copy has the class's."""
    model, (x, y) = mlp(), batch()
    optimizer = SAMOptimizer(sgd(model), method(model))
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    optimizer.step(zeroing(optimizer, model, x, y))
    scheduler.step()
    optimizer.zero_grad = lambda *_: pytest.fail("of the original")
    optimizer.note = lambda: 0  # what no pickle takes
    optimizer.register_step_pre_hook(lambda *_: pytest.fail("of the original"))

    twin = duplicate(optimizer)
    other = twin.sam.model
    assert vars(twin).keys() == vars(SAMOptimizer(sgd(model), method(model))).keys()
    assert twin.param_groups[0]["lr"] == 0.05 and twin.param_groups[0]["initial_lr"] == 0.1
    before = snapshot(model)
    expected = mlp()
    plain = SAMOptimizer(sgd(expected), method(expected))
    theirs = StepLR(plain, 1, gamma=0.5)
    plain.step(zeroing(plain, expected, x, y))
    theirs.step()
    ours = CosineAnnealingLR(twin, 5, last_epoch=1)  # another one, only of the copy
    theirs = CosineAnnealingLR(plain, 5, last_epoch=1)
    for _ in range(4):
        for o, m, s in ((twin, other, ours), (plain, expected, theirs)):
            o.step(zeroing(o, m, x, y))
            s.step()
    assert_untouched(model, before)
    assert same_weights(other, expected)
    assert optimizer.param_groups[0]["lr"] == 0.05


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)


def run_of(method, steps, make=adamw, networks=1, seed=0):
    """Networks in one module, each with an adapter of its own, after some steps."""
    model = nn.Sequential(*(mlp(seed=seed + i) for i in range(networks)))
    optimizers = [SAMOptimizer(make(m), method(m)) for m in model]
    go_on(model, optimizers, steps)
    return model, optimizers


def go_on(model, optimizers, steps):
    for _ in range(steps):
        for i, (m, o) in enumerate(zip(model, optimizers, strict=True)):
            o.step(zeroing(o, m, *batch(seed=i)))


def assert_goes_on_alike(a, b):
    for run in (a, b):
        go_on(*run, 6)
    assert same_weights(a[0], b[0])
    for p, q in zip(a[1], b[1], strict=True):
        assert_same_state(p.state_dict(), q.state_dict())


@pytest.mark.parametrize("there", [0, 2], ids=["into a fresh one", "into one that has stepped"])
@pytest.mark.parametrize("steps", [0, 1, 5], ids="after {} steps".format)
@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("make", [adamw, sgd])
def test_distributed_checkpoint(method, make, networks, steps, there):
    """It has an optimizer without a state make one, at a rate of zero, by step() without a closure."""
    run = run_of(method, steps, make, networks)
    weights, moments = get_state_dict(*run)
    assert moments.keys() == {"state", "param_groups"}  # all that it takes
    weights, moments = copy.deepcopy((weights, moments))
    rates = [g["lr"] for o in run[1] for g in o.param_groups]
    other = run_of(method, there, make, networks, seed=7)
    set_state_dict(*other, model_state_dict=weights, optim_state_dict=moments)
    assert [g["lr"] for o in other[1] for g in o.param_groups] == rates
    assert all("sam" not in g for o in other[1] for g in o.param_groups)
    for a, b in zip(run[1], other[1], strict=True):
        assert_same_state(a.state_dict(), b.state_dict())
    assert_goes_on_alike(run, other)


@pytest.mark.parametrize("there", [0, 2])
@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("options", [{}, {"full_state_dict": True, "cpu_offload": True}], ids=["", "full"])
@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_distributed_checkpoint_in_files(method, networks, there, options, tmp_path):
    options = StateDictOptions(**options)
    run = run_of(method, 5, networks=networks)
    dcp.save(dict(zip("mo", get_state_dict(*run, options=options), strict=True)), checkpoint_id=tmp_path)
    other = run_of(method, there, networks=networks, seed=7)
    state = dict(zip("mo", get_state_dict(*other, options=options), strict=True))
    dcp.load(state, checkpoint_id=tmp_path)
    set_state_dict(*other, model_state_dict=state["m"], optim_state_dict=state["o"], options=options)
    assert_goes_on_alike(run, other)


def test_distributed_checkpoint_with_parts_of_the_model(method):
    """Frozen weights, weights in another order and in no group, and another optimizer beside."""

    def make(steps):
        model = nn.ModuleDict({"a": mlp(), "b": nn.Linear(6, 3)})
        a = model["a"]
        a[2].requires_grad_(False)
        groups = [{"params": a[4].parameters(), "lr": 0.5}, {"params": [*a[2].parameters(), a[0].weight]}]
        adapted = SAMOptimizer(torch.optim.SGD(groups, lr=0.1, momentum=0.9), method(a))
        plain = torch.optim.Adam(model["b"].parameters())
        run = (nn.Sequential(a), [adapted])
        go_on(*run, steps)
        return model, (adapted, plain), run

    model, optimizers, run = make(5)
    weights, moments = copy.deepcopy(get_state_dict(model, optimizers))
    other, others, second = make(0)
    set_state_dict(other, others, model_state_dict=weights, optim_state_dict=moments)
    assert_goes_on_alike(run, second)


def test_distributed_checkpoint_that_lost_the_state_of_vsam():
    """A flat state has no place for what no weight has: loading says so, and changes nothing."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    for name in METHODS:
        run = run_of(METHODS[name], 5)
        weights, moments = copy.deepcopy(get_state_dict(*run, options=options))
        other = run_of(METHODS[name], 2)
        kept = copy.deepcopy([o.state_dict() for o in other[1]])
        load = {"model_state_dict": weights, "optim_state_dict": moments, "options": options}
        if name == "SAM":
            set_state_dict(*other, **load)
            assert_goes_on_alike(run, other)
        else:
            with pytest.raises(KeyError, match=r"sam: the state of VSAM is missing.*flatten_optimizer"):
                set_state_dict(*other, **load)
            assert_same_state([o.state_dict() for o in other[1]], kept)


def test_a_checkpoint_through_a_wrapper():
    """Frameworks hand their own optimizer to it, which asks this one."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

        param_groups = property(lambda self: self.optimizer.param_groups)
        state = property(lambda self: self.optimizer.state)

        def state_dict(self):
            return self.optimizer.state_dict()

        def load_state_dict(self, state_dict):
            self.optimizer.load_state_dict(state_dict)

    run, other = (run_of(METHODS["VSAM"], steps) for steps in (5, 1))
    weights, moments = copy.deepcopy(get_state_dict(run[0], Wrapper(*run[1])))
    set_state_dict(other[0], Wrapper(*other[1]), model_state_dict=weights, optim_state_dict=moments)
    assert_goes_on_alike(run, other)
    assert "sam" not in run[1][0].state_dict()["param_groups"][0]  # in all other states beside the groups
