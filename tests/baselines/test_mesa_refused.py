"""What MESA refuses: settings, models, logits, states."""

import copy

import pytest
import torch
from baselines.averaged import batch, start, train
from helpers import assert_same_state, same_bits
from torch import nn

from ausam_ext.baselines import MESA


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lam": -1}, ValueError, "lam: expected a finite number not below 0, got -1"),
        ({"tau": 0}, ValueError, "tau: expected a finite number above 0, got 0"),
        ({"decay": 1.1}, ValueError, "decay: expected a number from 0 to 1, got 1.1"),
        ({"decay": "0.9"}, TypeError, "decay: expected a number"),
        ({"start_epoch": 1.5}, TypeError, "start_epoch: expected an integer"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        MESA(nn.Linear(1, 2), **options)


@pytest.mark.parametrize("model", [None, [nn.Linear(1, 2)], [torch.ones(2)]])
def test_bad_models(model):
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got"):
        MESA(model)


def test_logits_that_do_not_fit():
    net, _, mesa, _ = start({})
    x, _ = batch(0)
    for logits, error, message in (
        (None, TypeError, "logits: expected a tensor"),
        (net(x).long(), TypeError, "logits: expected a tensor of float32"),
        (net(x)[0], ValueError, r"logits: expected 2 dimension\(s\), got shape \(4,\)"),
        (net(x)[:3], ValueError, r"model\(\*inputs\): expected the shape of logits, \(3, 4\), got \(10, 4\)"),
    ):
        with pytest.raises(error, match=message):
            mesa.penalty(logits, x)
    several = MESA(nn.LSTM(6, 4).double(), start_epoch=-1)
    with pytest.raises(TypeError, match=r"model\(\*inputs\): expected a tensor"):
        several.penalty(net(x), x)


@pytest.mark.parametrize("change", ["parameter", "buffer", "shape"])
def test_a_model_that_got_other_tensors(change):
    net, _, mesa, _ = train(start({}), 3)
    before = copy.deepcopy(mesa.state_dict())
    if change == "parameter":
        net.more = nn.Linear(2, 2)
    elif change == "buffer":
        net.register_buffer("more", torch.ones(2))
    else:
        net.seen = torch.ones(7)
    with pytest.raises(RuntimeError, match=r"update\(\): the model has other parameters or buffers"):
        mesa.update()
    assert_same_state(mesa.state_dict(), before)


def test_a_state_that_does_not_fit_changes_nothing():
    mesa, good = train(start({}), 3)[2], start({})[2].state_dict()
    before, tensors = copy.deepcopy(mesa.state_dict()), good["averaged"]
    weight = "module.last.weight"
    for change, error, message in (
        ({"version": 9}, ValueError, "version: expected 1, got 9"),
        ({"method": "SAF"}, ValueError, "method: expected MESA, got a state of SAF"),
        ({"epoch": None}, TypeError, "epoch: expected an integer"),
        ({"averaged": {weight: tensors[weight]}}, KeyError, "module.first.weight"),
        (
            {"averaged": {**tensors, weight: torch.ones(3)}},
            TypeError,
            f"{weight}: expected a tensor of float64",
        ),
        ({"averaged": {**tensors, weight: tensors[weight][1:]}}, ValueError, f"{weight}: expected the shape"),
    ):
        with pytest.raises(error, match=message):
            mesa.load_state_dict({**good, **change})
        assert_same_state(mesa.state_dict(), before)
    assert same_bits(mesa.state_dict()["averaged"][weight], mesa.averaged.module.last.weight)
