"""Checks of SAMOptimizer over a model in shards, as torch.distributed.checkpoint keeps it."""

import copy

import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from distributed.fsdp import odd_network, sharded
from distributed.processes import here
from distributed.training import METHODS, K, share, whole
from helpers import assert_same_state
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from ausam_ext.integrations import SAMOptimizer


def run_of(method, steps):
    model = sharded(odd_network())
    base = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = model, SAMOptimizer(base, METHODS[method](model))
    go_on(*run, steps)
    return run


def go_on(model, optimizer, steps):
    for step in range(steps):
        x, y = (t.to(here()) for t in share(*whole(step, 4 * K)))

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def assert_goes_on_alike(runs):
    for run in runs:
        go_on(*run, 8)
    first, *others = ([p.detach().full_tensor() for p in model.parameters()] for model, _ in runs)
    for other in others:
        assert_same_state(other, first)


def loaded(method, steps, weights, moments, options=None):
    run = run_of(method, steps)
    set_state_dict(*run, model_state_dict=weights, optim_state_dict=moments, options=options)
    return run


def assert_is_kept(method, **options):
    """In a fresh optimizer, and in one that has stepped."""
    run, options = run_of(method, 7), StateDictOptions(**options)
    kept = copy.deepcopy(get_state_dict(*run, options=options))
    others = [loaded(method, steps, *copy.deepcopy(kept), options) for steps in (0, 2)]
    assert_goes_on_alike([run, *others])


def check_shards(folder):
    for method in METHODS:
        assert_is_kept(method)


def check_the_whole(folder):
    assert_is_kept("VSAM", full_state_dict=True)


def check_files(folder):
    run, other = run_of("VSAM", 7), run_of("VSAM", 0)
    dcp.save(dict(zip("mo", get_state_dict(*run), strict=True)), checkpoint_id=folder.parent / "files")
    state = dict(zip("mo", get_state_dict(*other), strict=True))
    dcp.load(state, checkpoint_id=folder.parent / "files")
    set_state_dict(*other, model_state_dict=state["m"], optim_state_dict=state["o"])
    assert_goes_on_alike([run, other])
