"""Checks of DistributedDataParallel: R processes with K samples each train what one does with R * K."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from distributed.processes import assert_same_everywhere, gathered, here
from distributed.training import (
    METHODS,
    K,
    assert_equal_weights,
    assert_equals_one_process,
    closure_of,
    counting,
    overflowing,
    share,
    train,
    whole,
    wrapped,
)
from networks import TwoHeads, mlp
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler


def closure_of_parts(model, parts):
    """The mean over what the processes do, in one: ``parts`` has of each what it calls the model with, and
    its labels; nothing for one that does not take part."""

    def closure():
        model.zero_grad()
        loss = sum(F.cross_entropy(model(*args), y) for args, y in filter(None, parts)) / len(parts)
        loss.backward()
        return loss

    return closure


def accumulating(model, x, y):
    """Three micro-batches, of which only the last is reduced."""

    def closure():
        model.zero_grad()
        with model.no_sync():
            for i in range(2):
                (F.cross_entropy(model(x[i * K : (i + 1) * K]), y[i * K : (i + 1) * K]) / 3).backward()
        loss = F.cross_entropy(model(x[2 * K :]), y[2 * K :]) / 3
        loss.backward()
        return loss

    return closure


def check_sam_equals_one_process(folder):
    assert_equals_one_process(METHODS["SAM"])
    assert_equals_one_process(METHODS["adaptive SAM"])
    assert_equals_one_process(
        lambda m: SAM(m, 0.3, groups=[{"params": list(m.parameters())[:2], "rho": 1.0}])
    )


def check_vsam_equals_one_process(folder):
    sampled = assert_equals_one_process(METHODS["VSAM"], steps=40)
    assert all(sampled[:4]) and 6 < sum(sampled) < 40  # both kinds of iteration


def ausam(make, alpha, epochs, rank=None, num_replicas=None, size=40):
    """Trains with the sampler; returns the model, ADLP and every visit."""
    world = num_replicas or dist.get_world_size()
    x, y = whole(0, size)
    model = mlp(torch.float64).to(here())
    model = DDP(model) if num_replicas is None else model
    adlp = ADLP(size, device=here())
    batch_size = K * dist.get_world_size() // world
    batches = AUSAMBatchSampler(
        adlp, batch_size, alpha, warmup_epochs=2, rank=rank, num_replicas=num_replicas
    )
    loader = DataLoader(TensorDataset(x.cpu(), y.cpu()), batch_sampler=batches)
    method, visits = make(model), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for index, (x, y) in batches.indexed(loader):
            loss, perturbed = method.backward(closure_of(model, x.to(here()), y.to(here())))
            optimizer.step()
            if perturbed is not None:
                # Of so few bits that float32 adds them without rounding, in any order.
                dlp = ((perturbed - loss).abs() * 1024).round() / 1024
                visits.append((index.cpu(), dlp.cpu()))
                adlp.update(index, torch.zeros_like(dlp), dlp)
        if num_replicas is None:
            adlp.sync()
    return model, adlp, visits


def check_ausam_merges_what_all_processes_visited(folder):
    for make in (METHODS["SAM"], METHODS["VSAM"]):
        model, adlp, visits = ausam(make, 0.6, epochs=5)
        assert_same_everywhere([*model.parameters(), adlp.total, adlp.count])
        total, count = torch.zeros(40, dtype=torch.float64), torch.zeros(40, dtype=torch.int32)
        for index, dlp in [visit for rank in gathered(visits) for visit in rank]:
            total.index_add_(0, index, dlp)
            count.index_add_(0, index, torch.ones_like(index, dtype=torch.int32))
        assert torch.equal(adlp.count.cpu(), count) and torch.equal(adlp.total.double().cpu(), total)
        assert count.max() > count.min() and total.max() > 0


def check_ausam_without_a_choice_equals_one_process(folder):
    for make in (METHODS["SAM"], METHODS["VSAM"]):
        model, adlp, _ = ausam(make, 1.0, epochs=3)
        one, one_adlp, _ = ausam(make, 1.0, epochs=3, rank=0, num_replicas=1)
        assert_equal_weights(model, one)
        assert torch.equal(adlp.count, one_adlp.count) and adlp.count.sum() > 40
        torch.testing.assert_close(adlp.total, one_adlp.total, rtol=0, atol=2**-9)  # rounded to 2^-10 each


def check_options_of_the_wrapper(folder):
    for method in ("SAM", "VSAM"):
        assert_equals_one_process(METHODS[method], gradient_as_bucket_view=True)
        assert_equals_one_process(METHODS[method], static_graph=True)
        assert_equals_one_process(METHODS[method], bucket_cap_mb=1e-4)


def check_unused_parameters(folder):
    """Every process uses one of two heads, by turns: its own, so that one has a gradient here and one not."""
    for make in (METHODS["SAM"], METHODS["VSAM"]):
        torch.manual_seed(3)
        start = TwoHeads().double()
        many, one = wrapped(start, find_unused_parameters=True), copy.deepcopy(start).to(here())
        method, method_one = make(many), make(one)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.2) for m in (many, one)]
        for step in range(12):
            x, y = whole(step)
            world = dist.get_world_size()
            heads = ["ab"[(r + step) % 2] for r in range(world)]
            parts = [((x[r::world], head), y[r::world]) for r, head in enumerate(heads)]
            method.backward(closure_of(many, *share(x, y), heads[dist.get_rank()]))
            method_one.backward(closure_of_parts(one, parts))
            for optimizer in optimizers:
                optimizer.step()
        assert_same_everywhere(many.parameters())
        assert_equal_weights(many, one)


def check_batchnorm_statistics(folder):
    """DDP hands out those of rank 0, and they come only from first passes."""
    start = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    for make in (METHODS["SAM"], METHODS["VSAM"]):
        model = wrapped(start)
        method, optimizer = make(model), torch.optim.SGD(model.parameters(), lr=0.2)
        expected = torch.zeros(4, dtype=torch.float64, device=here())
        for step in range(10):
            x, y = share(*whole(step))
            with torch.no_grad():
                expected = 0.9 * expected + 0.1 * model.module[0](x).mean(0)
            method.backward(closure_of(model, x, y))
            optimizer.step()
        layer = model.module[1]
        assert layer.num_batches_tracked == 10
        if dist.get_rank() == 0:
            torch.testing.assert_close(layer.running_mean, expected)
        assert_same_everywhere(model.parameters())


def check_gradient_accumulation(folder):
    """Micro-batches in both passes, of which only the last is reduced."""
    for make in (METHODS["SAM"], METHODS["VSAM"]):
        start = mlp(torch.float64)
        many, one = wrapped(start, gradient_as_bucket_view=True), copy.deepcopy(start).to(here())
        count, method, method_one = counting(many), make(many), make(one)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.2) for m in (many, one)]
        sampled = []
        for step in range(12):
            batch = whole(step, 3 * K * dist.get_world_size())
            _, loss_perturbed = method.backward(accumulating(many, *share(*batch)))
            sampled.append(loss_perturbed is not None)
            method_one.backward(closure_of(one, *batch))
            for optimizer in optimizers:
                optimizer.step()
        assert len(count) == 12 + sum(sampled)
        assert_same_everywhere(many.parameters())
        assert_equal_weights(many, one)


def assert_all_skip_the_step(model, method, bad_pass, **options):
    """An overflow on rank 1, in one pass of the second step of three."""
    scaler, optimizer = method.scaler, torch.optim.SGD(model.parameters(), lr=0.2)
    for step, overflow in enumerate((False, True, False)):
        before = [p.detach().clone() for p in model.parameters()]
        bad = bad_pass if overflow and dist.get_rank() == 1 else None
        method.backward(overflowing(model, *share(*whole(step)), scaler, bad), **options)
        assert gathered(bool(method.overflow)) == [overflow] * dist.get_world_size()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        equal = [torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
        assert all(equal) if overflow else not any(equal)
        assert_same_everywhere(model.parameters())
    assert gathered(scaler.get_scale()) == [4.0] * dist.get_world_size()


def check_an_overflow_on_one_rank_skips_the_step_on_all(folder):
    """In which pass, and whether the first one is averaged, changes nothing."""
    for bad_pass in (0, 1):
        for name, options in (("SAM", {}), ("SAM", {"per_process": True}), ("VSAM", {})):
            model = wrapped(mlp())
            method = METHODS[name](model, scaler=torch.amp.GradScaler(here().type, init_scale=8.0))
            assert_all_skip_the_step(model, method, bad_pass, **options)


def check_uneven_epochs(folder):
    """Whatever the size of the data set, every process takes the same number of steps."""
    for size in (41, 42, 43, 3):
        for drop_last in (False, True):
            adlp = ADLP(size, device=here())
            batches = AUSAMBatchSampler(adlp, K, 0.5, full_epochs=0, drop_last=drop_last)
            loader = DataLoader(TensorDataset(*(t.cpu() for t in whole(0, size))), batch_sampler=batches)
            model = wrapped(mlp(torch.float64))
            sam, optimizer = SAM(model), torch.optim.SGD(model.parameters(), lr=0.1)
            steps = 0
            for index, (x, y) in batches.indexed(loader):
                loss, loss_perturbed = sam.backward(closure_of(model, x.to(here()), y.to(here())))
                adlp.update(index, loss, loss_perturbed)
                optimizer.step()
                steps += 1
            adlp.sync()
            each = -(-size // dist.get_world_size())
            assert steps == len(batches) == (each // K if drop_last else -(-each // K))
            assert gathered(steps) == [steps] * dist.get_world_size()
            assert_same_everywhere([*model.parameters(), adlp.count])


def check_join(folder):
    """Loaders of the user's own, of another length on every rank: SAM works within torch's Join."""
    world, start = dist.get_world_size(), mlp(torch.float64)
    many, one = wrapped(start), copy.deepcopy(start).to(here())
    steps = [3 + rank for rank in range(world)]
    optimizer = torch.optim.SGD(many.parameters(), lr=0.2)
    with many.join():
        train(many, SAM(many, 0.3), [share(*whole(s)) for s in range(steps[dist.get_rank()])], optimizer)
    sam, optimizer = SAM(one, 0.3), torch.optim.SGD(one.parameters(), lr=0.2)
    for step in range(max(steps)):
        x, y = whole(step)
        parts = [((x[r::world],), y[r::world]) if step < steps[r] else None for r in range(world)]
        sam.backward(closure_of_parts(one, parts))
        optimizer.step()
    assert_same_everywhere(many.parameters())
    assert_equal_weights(many, one)


def check_arguments_that_differ(folder):
    """Else one process would add its second gradient to the first one of another."""
    rank, world = dist.get_rank(), dist.get_world_size()
    differing = {
        "seed": rank,
        "warmup_steps": 4 + rank,
        "window": 6 + 2 * rank,
        "rho": 0.1 + rank,
        "gamma": 1 / (1 + rank),
        "max_reuse": rank,
        "norm_params": rank or None,
        "scaler": torch.amp.GradScaler(here().type, enabled=rank > 0),
    }
    for name, value in differing.items():
        model = wrapped(mlp(torch.float64))
        vsam = VSAM(model, **{"warmup_steps": 4, "window": 6, "slices": 2, name: value})
        with pytest.raises(
            ValueError, match=f"^{name}: expected the same argument in every process"
        ) as error:
            vsam.backward(closure_of(model, *share(*whole(0))))
        assert all(p.grad is None for p in model.parameters())
    assert f"got {[False] + [True] * (world - 1)} by rank" in str(error.value)

    # A checkpoint that only one process has loaded.
    model = wrapped(mlp(torch.float64))
    vsam = METHODS["VSAM"](model)
    train(model, vsam, [share(*whole(step)) for step in range(3)])
    state = vsam.state_dict()
    vsam = METHODS["VSAM"](model)
    if rank == world - 1:
        vsam.load_state_dict(state)
    with pytest.raises(ValueError, match="progress: expected the same loaded state"):
        train(model, vsam, [share(*whole(3))])
    vsam.load_state_dict(state)
    train(model, vsam, [share(*whole(3))])
