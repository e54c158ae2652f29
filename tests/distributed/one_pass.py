"""Checks of SAF, MESA and Momentum-SAM: several processes train what one does with all their samples."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from distributed import fsdp
from distributed.fsdp import odd_network, sharded
from distributed.processes import assert_same_everywhere, here
from distributed.training import K, assert_equal_weights, share, whole, wrapped
from networks import mlp
from torch.utils.data import DistributedSampler

from ausam_ext.baselines import MESA, SAF, MomentumSAM

EPOCHS, BATCHES = 4, 3


def train(model, make, part):
    """``make(model, optimizer)`` gives a method, ``part`` what of a batch this process has."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    method, size = make(model, optimizer), K * dist.get_world_size()
    for epoch in range(EPOCHS):
        if not isinstance(method, MomentumSAM):
            method.set_epoch(epoch)
        for i in range(BATCHES):
            index, (x, y) = torch.arange(i * size, (i + 1) * size), whole(i)
            (index, _), (x, y) = part(index, index), part(x, y)
            optimizer.zero_grad()
            if isinstance(method, MomentumSAM):
                with method.perturbed():
                    F.cross_entropy(model(x), y).backward()
            else:
                logits = model(x)
                loss = F.cross_entropy(logits, y)
                inputs = (logits, x) if isinstance(method, MESA) else (index, logits)
                (loss + method.penalty(*inputs)).backward()
            optimizer.step()
            if isinstance(method, MESA):
                method.update()
    return method


def assert_equals_one_process(make):
    model = mlp(torch.float64).to(here())
    many = wrapped(model)
    first = [p.detach().clone() for p in model.parameters()]
    methods = train(many, make, share), train(model, make, lambda *whole: whole)
    assert_same_everywhere(many.parameters())
    assert_equal_weights(many, model)
    assert not any(torch.equal(p, w) for p, w in zip(model.parameters(), first, strict=True))
    return methods


def saf(model=None, optimizer=None, **options):
    size = K * dist.get_world_size() * BATCHES
    return SAF(size, 3, lam=2.0, start_epoch=0, delay=1, device=here(), dtype=torch.float64, **options)


def check_saf_equals_one_process_where_each_keeps_its_samples(folder):
    assert_equals_one_process(saf)


def check_saf_has_no_term_of_what_another_process_saw(folder):
    method, seen = saf(), []
    sampler = DistributedSampler(range(K * dist.get_world_size() * BATCHES))
    for epoch in range(5):
        sampler.set_epoch(epoch)
        method.set_epoch(epoch)
        index = torch.tensor(list(sampler))
        seen.append(set(index.tolist()))
        z = torch.randn(len(index), 3, dtype=torch.float64, device=here(), requires_grad=True)
        (method.penalty(index, z) + 0 * z.sum()).backward()
        known = [bool(row.any()) for row in z.grad]
        assert known == [epoch > 0 and i in seen[epoch - 1] for i in index.tolist()]
        assert epoch == 0 or 0 < sum(known) < len(known)


def check_mesa_equals_one_process(folder):
    def make(model, _):
        return MESA(model, decay=0.7, start_epoch=0)

    many, one = assert_equals_one_process(make)
    assert_same_everywhere(many.averaged.parameters())
    assert_equal_weights(many.averaged, one.averaged)


def check_mesa_refuses_shards(folder):
    with pytest.raises(TypeError, match="model: expected one that is whole in each process"):
        MESA(sharded(odd_network()))


def momentum(model, optimizer):
    return MomentumSAM(optimizer, 0.3)


def check_momentum_sam_equals_one_process(folder):
    assert_equals_one_process(momentum)


def check_momentum_sam_in_shards_equals_the_whole(folder):
    many, one = sharded(odd_network()), odd_network().to(here())
    train(one, momentum, lambda *whole: whole)
    train(many, momentum, share)
    fsdp.assert_equal_weights(many, one)


def check_momentum_sam_in_shards_is_back_after_an_exception(folder):
    model = sharded(odd_network())
    method = train(model, momentum, share)
    before = [p.to_local().clone() for p in model.parameters()]
    x, _ = share(*whole(0))
    plain = model(x).detach()
    model.reshard()
    with pytest.raises(ZeroDivisionError), method.perturbed():
        assert not torch.equal(model(x).detach(), plain)
        _ = 1 / 0
    model.reshard()
    assert torch.equal(model(x).detach(), plain)
    model.reshard()
    assert all(torch.equal(p.to_local(), w) for p, w in zip(model.parameters(), before, strict=True))
