"""Checks of what is left when one of three processes fails: no hang, an error, the weights as they were."""

import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from distributed.fsdp import sharded
from distributed.processes import group
from distributed.training import METHODS, closure_of, share, whole, wrapped
from networks import mlp
from torch.distributed.tensor import DTensor

from ausam_ext import ADLP

PATIENCE = timedelta(seconds=6)
FAILING = 1


class Failure(Exception):
    pass


def impatient(folder, name):
    """A process group that gives up soon; returns whether this process is the one to fail."""
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    group(folder, f"{name}-impatient", rank, world, timeout=PATIENCE)
    return rank == FAILING


def local_bits(model):
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [part.detach().clone() for part in parts]


def assert_second_pass_fails(model, method, fail, failing):
    """The others get an error from the reduction, soon, and the weights as they were."""
    (x, y), before = share(*whole(0)), local_bits(model)
    closure_of(model, x, y)()
    began = time.monotonic()
    with pytest.raises(Failure if failing else RuntimeError) as error, method.perturbed():
        assert not all(map(torch.equal, local_bits(model), before))
        if failing:
            fail()
        closure_of(model, x, y)()
    assert failing or not isinstance(error.value, Failure)
    assert time.monotonic() - began < 3 * PATIENCE.total_seconds()
    assert all(map(torch.equal, local_bits(model), before))


def raise_failure():
    raise Failure


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def check_a_rank_raises_in_the_second_pass(folder):
    failing = impatient(folder, "raises")
    model = wrapped(mlp(torch.float64))
    assert_second_pass_fails(model, METHODS["SAM"](model), raise_failure, failing)


def check_a_rank_raises_in_the_second_pass_over_shards(folder):
    failing = impatient(folder, "raises-sharded")
    model = sharded(mlp(torch.float64))
    assert_second_pass_fails(model, METHODS["VSAM"](model), raise_failure, failing)


def check_a_rank_is_missing_at_the_merge(folder):
    failing = impatient(folder, "merge")
    adlp = ADLP(10)
    adlp.update(torch.arange(10), torch.zeros(10), torch.ones(10))
    began = time.monotonic()
    if not failing:
        with pytest.raises(RuntimeError):
            adlp.sync()
    assert time.monotonic() - began < 3 * PATIENCE.total_seconds()
    assert adlp.count.tolist() == [1] * 10 and adlp.total.tolist() == [1.0] * 10


def check_a_rank_is_killed_between_the_passes(folder):
    """Last: it does not come back."""
    failing = impatient(folder, "killed")
    model = wrapped(mlp(torch.float64))
    assert_second_pass_fails(model, METHODS["VSAM"](model), die, failing)
