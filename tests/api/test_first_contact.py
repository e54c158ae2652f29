"""What people write who come from another SAM, and what they see: errors that say how it is written here."""

import re

import numpy as np
import pytest
import torch
from networks import batch, closure_of, mlp
from torch import nn

from ausam_ext import SAM, VSAM

METHODS = {"SAM": SAM, "VSAM": lambda m, **kw: VSAM(m, warmup_steps=5, **kw)}


@pytest.mark.parametrize(
    "call",
    [
        lambda cls, m: cls(m.parameters(), torch.optim.SGD, rho=0.05),
        lambda cls, m: cls(m.parameters(), torch.optim.SGD, rho=0.05, adaptive=True, lr=0.1, momentum=0.9),
        lambda cls, m: cls(m.parameters(), base_optimizer=torch.optim.AdamW, lr=1e-3),
        lambda cls, m: cls(m, torch.optim.SGD(m.parameters(), lr=0.1)),
        lambda cls, m: cls(m.parameters(), torch.optim.SGD(m.parameters(), lr=0.1), 0.05),
        lambda cls, m: cls(m, rho=0.05, lr=0.1),
    ],
)
@pytest.mark.parametrize("cls", [SAM, VSAM])
def test_made_like_an_optimizer(cls, call):
    how = re.escape(f"sam = {cls.__name__}(model, rho=0.05); optimizer = torch.optim.SGD(model.parameters()")
    with pytest.raises(TypeError, match=how):
        call(cls, mlp())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: mlp().parameters(),
            r"generator of Parameter; write SAM\(model\), not SAM\(model\.parameters\(\)\)",
        ),
        (lambda: list(mlp().parameters()), r"list of Parameter; write SAM\(model\)"),
        (lambda: nn.Parameter(torch.zeros(3)), r"got Parameter; write SAM\(model\)"),
        (lambda: [{"params": mlp().parameters()}], "list of dict"),
        (
            lambda: torch.optim.SGD(mlp().parameters(), lr=0.1),
            r"got SGD; write SAM\(model\): the optimizer steps",
        ),
        (lambda: "resnet18", "got str"),
        (lambda: None, "got NoneType"),
        (lambda: nn.Linear, "got type"),
    ],
)
def test_made_of_something_else(model, message):
    with pytest.raises(
        TypeError, match=rf"model: expected a torch\.nn\.Module or several, got .*{message}|{message}"
    ):
        SAM(model())


def test_made_of_nothing():
    with pytest.raises(ValueError, match="model: expected at least one"):
        SAM([])


@pytest.mark.parametrize("name", ["first_step", "second_step", "step", "zero_grad", "param_groups"])
@pytest.mark.parametrize("method", METHODS)
def test_called_as_elsewhere(method, name):
    sam = METHODS[method](mlp())
    with pytest.raises(AttributeError, match=rf"{method} has no {name}: .*(perturbed|rho)"):
        getattr(sam, name)
    assert not hasattr(sam, name)
    with pytest.raises(AttributeError, match="'nonsense'"):
        _ = sam.nonsense


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"param": [], "rho": 0.1}], r"keys \['param', 'rho'\]"),
        ([{"params": []}], r"keys \['params'\]"),
        ([{"params": [], "rho": 0.1, "lr": 0.1}], r"'lr'"),
        ([nn.Parameter(torch.zeros(1))], "Parameter"),
    ],
)
def test_groups_of_another_form(groups, message):
    with pytest.raises(
        TypeError, match=rf'groups: expected dicts with the keys "params" and "rho", got .*{message}'
    ):
        SAM(mlp(), groups=groups)


def test_numbers_of_numpy():
    model, (x, y) = mlp(), batch()
    sam = SAM(model, np.float32(0.5), groups=[{"params": model[0].parameters(), "rho": np.float64(0.25)}])
    assert type(sam.rho) is float and type(sam.groups[0]["rho"]) is float
    sam.backward(closure_of(model, x, y))
    whole = np.int64(3)
    vsam = VSAM(
        model, np.float64(0.5), gamma=np.float32(0.5), warmup_steps=whole, max_reuse=whole, seed=whole
    )
    vsam.backward(closure_of(model, x, y))
    assert type(vsam.warmup_steps) is int


def test_settings_are_shown():
    model = mlp()
    assert repr(SAM(model, 0.1, maximize=True, params=model[0].parameters())) == (
        "SAM(Sequential, rho=0.1, adaptive=False, maximize=True, params=2 of 6, groups=[], scaler=False)"
    )
    sam = SAM([model, nn.Linear(2, 2)], groups=[{"params": model[0].parameters(), "rho": 0.3}])
    sam.rho = 0.2
    assert "(ModuleList, rho=0.2, " in repr(sam) and "groups=['2 with rho=0.3']" in repr(sam)
    shown = repr(VSAM(model, alpha=0.13, gamma=0.7, warmup_steps=12, norm_params=None))
    for setting in (
        "VSAM(Sequential, rho=0.05",
        "alpha=0.13",
        "gamma=0.7",
        "warmup_steps=12",
        "norm_params=None",
    ):
        assert setting in shown
    assert "window=50, slices=5, max_rate=0.8, initial_samples=1" in shown and "max_reuse=6" in shown


def test_a_loop_may_save_either_and_one_does_not_load_the_other():
    model, (x, y) = mlp(), batch()
    sam, vsam = SAM(model), VSAM(model, warmup_steps=5)
    closure_of(model, x, y)()
    SAM(model).load_state_dict(sam.state_dict())
    with pytest.raises(ValueError, match="method: expected a state of SAM, got one of VSAM"):
        sam.load_state_dict(vsam.state_dict())
    with pytest.raises(ValueError, match="method: expected a state of VSAM, got one of SAM"):
        vsam.load_state_dict(sam.state_dict())
    with pytest.raises(ValueError, match="version: expected 1, got 2"):
        sam.load_state_dict({**sam.state_dict(), "version": 2})
    with pytest.raises(KeyError, match="method"):
        vsam.load_state_dict({k: v for k, v in vsam.state_dict().items() if k != "method"})
