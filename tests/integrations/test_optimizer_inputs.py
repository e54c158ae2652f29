"""Every optimizer of PyTorch, with every input that PyTorch's own tests give it, within SAMOptimizer."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state, same_bits
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from ausam_ext import SAM, VSAM
from ausam_ext.integrations import SAMOptimizer

NAMES = (
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "Muon", "NAdam", "RAdam"),
    *("RMSprop", "Rprop", "SGD"),
)
REFUSED = {"LBFGS", "SparseAdam"}
# In a process of its own: what it imports changes torch's global flags.
INPUTS = """
import pickle, sys
from torch.testing._internal.common_optimizers import optim_db
inputs = {}
for info in optim_db:
    flags = [f for f in info.supported_impls if f != "fused" or "cpu" in info.supports_fused_on]
    inputs[info.name] = [
        (f"{i.desc} {flag}", {**i.kwargs, **flag})
        for i in info.optim_inputs_func(device="cpu")
        for flag in ({f: False for f in flags}, *({f: True} for f in flags))
    ]
with open(sys.argv[1], "wb") as file:
    pickle.dump(inputs, file)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The arguments of each optimizer, with their description; foreach and fused on and off."""
    file = tmp_path_factory.mktemp("inputs") / "inputs"
    subprocess.run([sys.executable, "-c", INPUTS, file], check=True, timeout=300)
    return pickle.loads(file.read_bytes())


@pytest.fixture(scope="module")
def stepping(inputs):
    """Those with which plain PyTorch steps. What it refuses is refused by the adapter in the same words."""
    found = {}
    for name in NAMES:
        refusals = {
            desc: [refusal(name, kwargs, adapted) for adapted in (False, True)]
            for desc, kwargs in inputs[name]
        }
        assert all(plain == adapted for plain, adapted in refusals.values()), refusals
        found[name] = [kwargs for desc, kwargs in inputs[name] if refusals[desc][0] is None]
    assert sum(map(len, found.values())) > 180
    return found


def network(name):
    torch.manual_seed(0)
    bias = name != "Muon"  # takes only matrices
    return nn.Sequential(nn.Linear(4, 5, bias=bias), nn.Tanh(), nn.Linear(5, 3, bias=bias))


def batch():
    g = torch.Generator().manual_seed(1)
    return torch.randn(8, 4, generator=g), torch.randint(0, 3, (8,), generator=g)


class Run:
    """A network and its optimizer: in an adapter, or in a loop written by hand."""

    def __init__(self, name, kwargs, kind, adapted):
        self.model = network(name)
        base = getattr(torch.optim, name)(self.model.parameters(), **copy.deepcopy(kwargs))
        options = {"maximize": True} if kwargs.get("maximize") and not adapted else {}
        if kind is VSAM:
            options |= {"warmup_steps": 2, "window": 4, "slices": 2, "initial_samples": 2}
        self.sam = kind(self.model, 0.1, **options)
        self.adapted = adapted
        self.optimizer = SAMOptimizer(base, self.sam) if adapted else base

    def closure(self):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(batch()[0]), batch()[1])
        loss.backward()
        return loss

    def step(self):
        if self.adapted:
            return self.optimizer.step(self.closure)
        loss = self.closure().detach()
        if isinstance(self.sam, VSAM) and not self.sam.decide():
            self.sam.reuse_()
        else:
            with self.sam.perturbed():
                self.closure()
        self.optimizer.step()
        return loss


def refusal(name, kwargs, adapted):
    """What making the optimizer or a step raises, if any."""
    try:
        Run(name, kwargs, SAM, adapted).step()
    except Exception as error:
        return type(error), str(error)
    return None


def pickled(run):
    return pickle.loads(pickle.dumps(run))


def state_of(run):
    return {key: value for key, value in run.optimizer.state_dict().items() if key != "sam"}


def assert_alike(ours, theirs):
    """Weights, moments and groups."""
    for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert same_bits(p, q)
    assert_same_state(state_of(ours), state_of(theirs))


def pairs(stepping, name, kind=SAM):
    """Adapter and loop by hand, for every input."""
    for kwargs in stepping[name]:
        yield Run(name, kwargs, kind, True), Run(name, kwargs, kind, False), kwargs


def test_all_optimizers_are_there(inputs):
    assert set(inputs) == {*NAMES, *REFUSED}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [SAM, VSAM])
def test_steps_are_those_of_a_loop_by_hand(stepping, name, kind):
    for ours, theirs, _ in pairs(stepping, name, kind):
        for _ in range(4):
            assert same_bits(ours.step(), theirs.step())
        assert_alike(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_hooks_hear_the_same(stepping, name):
    for ours, theirs, _ in pairs(stepping, name):
        heard = []
        for run in (ours, theirs):
            log = []
            heard.append(log)
            run.optimizer.register_step_pre_hook(
                lambda o, args, kwargs, log=log: log.append(
                    [
                        type(o),
                        args[1:],
                        kwargs,
                        *(p.grad.clone() for g in o.param_groups for p in g["params"]),
                    ]
                )
            )
            for event in ("step_post", "state_dict_pre", "state_dict_post"):
                register = getattr(run.optimizer, f"register_{event}_hook")
                register(lambda o, *_, log=log, event=event: log.append([event, type(o)]))
            for event in ("pre", "post"):
                register = getattr(run.optimizer, f"register_load_state_dict_{event}_hook")
                register(lambda o, *_, log=log, event=event: log.append([event, type(o)]))
            run.step()
            run.optimizer.load_state_dict(run.optimizer.state_dict())
            run.step()
        assert [entry[0] for entry in heard[0]][1:-2] == [
            *("step_post", "state_dict_pre", "state_dict_post", "pre", "post")
        ]
        assert_same_state(*heard)


@pytest.mark.parametrize("name", NAMES)
def test_states_go_into_fresh_ones(stepping, name):
    """Also from the plain optimizer and into it."""
    for ours, theirs, kwargs in pairs(stepping, name):
        for run in (ours, theirs):
            run.step()
        saved = copy.deepcopy([run.optimizer.state_dict() for run in (ours, theirs)])
        assert_same_state(*saved)
        plain, fresh = (Run(name, kwargs, SAM, adapted) for adapted in (False, True))
        for run, state in ((plain, saved[0]), (fresh, saved[1])):  # each from the other
            run.model.load_state_dict(ours.model.state_dict())
            run.optimizer.load_state_dict(state)
        for run in (ours, theirs, plain, fresh):
            run.step()
        assert_alike(ours, theirs)
        assert_alike(fresh, theirs)
        assert_alike(plain, theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copies_go_on_alike(stepping, name, duplicate):
    for ours, theirs, _ in pairs(stepping, name):
        for run in (ours, theirs):
            StepLR(run.optimizer, 1)
            run.step()
        twin, other = duplicate(ours), duplicate(theirs)
        ours.optimizer.step = None  # which the copy does not call
        assert twin.optimizer.param_groups[0]["params"][0] is next(twin.model.parameters())
        for run in (twin, other):
            run.step()
        assert_alike(twin, other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: StepLR(o, 1, gamma=0.5),
        lambda o: ReduceLROnPlateau(o, patience=0),
        lambda o: OneCycleLR(o, max_lr=0.1, total_steps=5, cycle_momentum=False),
    ],
    ids=["StepLR", "ReduceLROnPlateau", "OneCycleLR"],
)
def test_schedules(stepping, name, schedule):
    """A rate that is a tensor among them, which schedulers fill in place."""
    for ours, theirs, _ in pairs(stepping, name):
        schedulers = [schedule(run.optimizer) for run in (ours, theirs)]
        rates = []
        for _ in range(3):
            for run, scheduler in zip((ours, theirs), schedulers, strict=True):
                run.step()
                scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
            rates.append(float(ours.optimizer.param_groups[0]["lr"]))
        assert_alike(ours, theirs)
        assert len(set(rates)) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_closure_without_a_backward_pass_changes_nothing(inputs, name):
    """With weights that are trained and with frozen ones."""
    for desc, kwargs in inputs[name]:
        for trained in (True, False):
            runs = [Run(name, kwargs, SAM, adapted) for adapted in (True, False)]
            for run in runs:
                run.model.requires_grad_(trained)
                loss = torch.tensor([1.0])
                assert same_bits(run.optimizer.step(lambda loss=loss: loss), loss), desc
            assert_alike(*runs)
            for p, q in zip(runs[0].model.parameters(), network(name).parameters(), strict=True):
                assert same_bits(p, q)


def test_lbfgs_is_refused(inputs):
    for _, kwargs in inputs["LBFGS"]:
        model = network("SGD")
        with pytest.raises(TypeError, match="optimizer: LBFGS calls its closure many times"):
            SAMOptimizer(torch.optim.LBFGS(model.parameters(), **kwargs), SAM(model))


@pytest.mark.parametrize("name", ["SparseAdam", "SGD", "Adagrad"])
@pytest.mark.parametrize("kind", [SAM, VSAM])
def test_sparse_gradients_are_refused(inputs, name, kind):
    """In words, with nothing changed."""
    for desc, kwargs in inputs[name]:
        model = nn.Embedding(7, 3, sparse=True)
        base = getattr(torch.optim, name)(model.parameters(), **copy.deepcopy(kwargs))
        optimizer = SAMOptimizer(base, kind(model, warmup_steps=1) if kind is VSAM else kind(model))

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(torch.tensor([1, 3])).square().sum()
            loss.backward()
            return loss

        before, state = model.weight.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
        with pytest.raises(
            TypeError, match=r"grads\[0\]: expected a strided tensor, got layout torch.sparse_coo"
        ):
            optimizer.step(closure)
        assert same_bits(model.weight, before), desc
        assert_same_state(optimizer.state_dict()["state"], state, desc)
