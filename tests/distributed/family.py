"""Checks of the baselines in several processes: together they train what one does."""

import pytest
import torch
from baselines.methods import METHODS
from distributed import fsdp
from distributed.processes import here
from distributed.training import assert_equals_one_process, closure_of, share, train, whole, wrapped
from networks import mlp

from ausam_ext.baselines import AESAM, RandomizedSAM


def check_ddp_equals_one_process(folder):
    for name, make in METHODS.items():
        sampled = assert_equals_one_process(make)
        assert 2 < sum(sampled) < 20, name


def check_fully_shard_equals_the_whole(folder):
    for name, make in METHODS.items():
        _, sampled = fsdp.assert_equals_the_whole(make)
        assert 2 < sum(sampled) < 20, name


def check_arguments_that_differ(folder):
    rank = torch.distributed.get_rank()
    different = {
        "seed": lambda m: RandomizedSAM(m, seed=rank),
        "decay": lambda m: AESAM(m, total_steps=9, decay=0.5 + 0.1 * rank),
        "adaptive": lambda m: AESAM(m, total_steps=9, adaptive=bool(rank)),
    }
    for name, make in different.items():
        model = wrapped(mlp(torch.float64))
        with pytest.raises(ValueError, match=f"^{name}: expected the same argument in every process"):
            make(model).backward(closure_of(model, *share(*whole(0))))


def check_a_state_that_only_one_process_has_loaded(folder):
    make = METHODS["AESAM"]
    other = mlp(torch.float64).to(here())
    method = make(other)
    train(other, method, [whole(step) for step in range(3)])
    model = wrapped(mlp(torch.float64))
    mine = make(model)
    if torch.distributed.get_rank():
        mine.load_state_dict(method.state_dict())
    with pytest.raises(ValueError, match="progress: expected the same loaded state in every process"):
        mine.backward(closure_of(model, *share(*whole(0))))
