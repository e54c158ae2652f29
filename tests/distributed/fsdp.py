"""Checks of fully_shard (FSDP2): a model in shards trains what the whole one does."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from distributed.processes import gathered, here
from distributed.training import METHODS, K, closure_of, overflowing, share, train, whole
from helpers import same_bits
from networks import mlp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ausam_ext import SAM, VSAM


def odd_network():
    """Sizes that no number of processes divides; of the last layer some processes hold nothing."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 13), nn.LayerNorm(13), nn.Tanh(), nn.Linear(13, 7), nn.Tanh(), nn.Linear(7, 3)
    ).double()


def sharded(model, **options):
    """Each layer on its own, and the rest with the root."""
    model = copy.deepcopy(model).to(here())
    for layer in (model[0], model[3]):
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def assert_equal_weights(model, reference, tolerance=1e-11):
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert isinstance(p, DTensor)
        torch.testing.assert_close(p.detach().full_tensor(), q.detach(), rtol=tolerance, atol=tolerance)


def assert_equals_the_whole(make, steps=20, shard=sharded):
    start = odd_network()
    many, one = shard(start), copy.deepcopy(start).to(here())
    sampled = train(many, make(many), [share(*whole(step)) for step in range(steps)])
    assert train(one, make(one), [whole(step) for step in range(steps)]) == sampled
    assert gathered(sampled) == [sampled] * dist.get_world_size()
    assert_equal_weights(many, one)
    return many, sampled


def check_sam_equals_the_whole(folder):
    many, _ = assert_equals_the_whole(METHODS["SAM"])
    empty = [any(p.to_local().numel() == 0 for p in many.parameters())]
    assert sum(gathered(empty), []).count(True) == (dist.get_world_size() == 4)  # noqa: RUF017
    assert_equals_the_whole(METHODS["adaptive SAM"])
    assert_equals_the_whole(lambda m: SAM(m, 0.3, groups=[{"params": m[3].parameters(), "rho": 1.0}]))


def check_vsam_equals_the_whole(folder):
    _, sampled = assert_equals_the_whole(METHODS["VSAM"], steps=40)
    assert all(sampled[:4]) and 6 < sum(sampled) < 40


def check_replicas_of_shards(folder):
    mesh = init_device_mesh(here().type, (2, dist.get_world_size() // 2), mesh_dim_names=("copies", "shards"))
    for name in ("SAM", "adaptive SAM", "VSAM"):
        assert_equals_the_whole(METHODS[name], shard=lambda model: sharded(model, mesh=mesh))

    model, last = sharded(odd_network(), mesh=mesh), dist.get_world_size() - 1
    vsam = VSAM(model, warmup_steps=5, seed=int(dist.get_rank() == last))  # no neighbour of rank 0
    with pytest.raises(ValueError, match=rf"^seed: .*got \[{'0, ' * last}1\] by rank"):
        train(model, vsam, [share(*whole(0))])


def check_shards_of_shards(folder):
    """fully_shard over tensor parallelism: two processes see the same samples and hold parts of a layer."""
    pairs = dist.get_world_size() // 2
    mesh = init_device_mesh(here().type, (pairs, 2), mesh_dim_names=("data", "tensor"))
    for name in ("SAM", "adaptive SAM", "VSAM"):
        start = mlp(torch.float64)
        one, model = copy.deepcopy(start).to(here()), start.to(here())
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        model = parallelize_module(model, mesh["tensor"], plan)
        model = fully_shard(model, mesh=mesh["data"])
        batches = [whole(step) for step in range(12)]
        mine = [
            (x[mesh.get_coordinate()[0] :: pairs], y[mesh.get_coordinate()[0] :: pairs]) for x, y in batches
        ]
        assert train(model, METHODS[name](model), mine) == train(one, METHODS[name](one), batches)
        assert_equal_weights(model, one)


def local_bits(model):
    return [(p.to_local().data_ptr(), p.to_local().clone()) for p in model.parameters()]


def assert_untouched(model, before):
    for p, (pointer, value) in zip(model.parameters(), before, strict=True):
        assert p.to_local().data_ptr() == pointer and same_bits(p.to_local(), value)


def check_local_shards_come_back(folder):
    """Their bits, in the same memory; also after an exception in the second pass."""
    for make in (METHODS["SAM"], METHODS["VSAM"]):
        model, (x, y) = sharded(odd_network()), share(*whole(0))
        before, method = local_bits(model), make(model)
        closure_of(model, x, y)()
        with method.perturbed():
            moved = [
                not torch.equal(p.to_local(), v) for p, (_, v) in zip(model.parameters(), before, strict=True)
            ]
            held = [p.to_local().numel() > 0 for p in model.parameters()]
            assert moved == held
            closure_of(model, x, y)()
        assert_untouched(model, before)
        loss = model(x).sum().item()
        model.reshard()  # else zero_grad() would clear the gradients of the whole parameters, which have none
        closure_of(model, x, y)()
        with pytest.raises(ZeroDivisionError), method.perturbed():
            assert model(x).sum().item() != loss
            raise ZeroDivisionError
        assert_untouched(model, before)
        assert model(x).sum().item() == loss  # no whole parameter is left over from inside


def check_a_forward_pass_in_between(folder):
    """It gathers the root's parameters, and only a backward pass lets go of them."""
    model, twin, (x, y) = sharded(odd_network()), sharded(odd_network()), share(*whole(0))
    SAM(twin, 0.5).backward(closure_of(twin, x, y))
    closure_of(model, x, y)()
    with torch.no_grad():
        model(x)
    with SAM(model, 0.5).perturbed():
        closure_of(model, x, y)()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert same_bits(p.grad.to_local(), q.grad.to_local())


def check_the_psf_is_sharded(folder):
    model = sharded(odd_network())
    vsam = VSAM(model, warmup_steps=5)
    train(model, vsam, [share(*whole(0))])
    psf = vsam.state_dict()["psf"]
    for t, p in zip(psf, model.parameters(), strict=True):
        assert isinstance(t, DTensor) and t.placements == p.placements
        assert t.to_local().shape == p.to_local().shape


def check_mixed_precision(folder):
    """bfloat16 inside, float32 shards: the perturbation has the size it has without."""
    start = odd_network().float()
    for make in (METHODS["SAM"], METHODS["VSAM"]):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        model = sharded(start, mp_policy=policy)
        x, y = share(*whole(0))
        before, method = [p.detach().full_tensor() for p in model.parameters()], make(model)
        F.cross_entropy(model(x.bfloat16()), y).backward()
        with method.perturbed():
            moved = [p.detach().full_tensor() - b for p, b in zip(model.parameters(), before, strict=True)]
            radius = torch.cat([m.flatten() for m in moved]).norm()
            torch.testing.assert_close(radius, torch.tensor(0.3, device=radius.device), rtol=1e-5, atol=0)
            F.cross_entropy(model(x.bfloat16()), y).backward()
        for p, b in zip(model.parameters(), before, strict=True):
            assert same_bits(p.detach().full_tensor(), b) and p.grad.dtype == torch.float32


def check_an_overflow_on_one_rank_skips_the_step_on_all(folder):
    for make in (METHODS["SAM"], METHODS["VSAM"]):
        for bad_pass in (0, 1):
            model = sharded(odd_network().float())
            scaler = torch.amp.GradScaler(here().type, init_scale=8.0)
            method, optimizer = make(model, scaler=scaler), torch.optim.SGD(model.parameters(), lr=0.2)
            for overflow in (True, False):
                before = local_bits(model)
                bad = bad_pass if overflow and dist.get_rank() == 1 else None
                method.backward(overflowing(model, *share(*whole(0)), scaler, bad))
                assert gathered(bool(method.overflow)) == [overflow] * dist.get_world_size()
                scaler.step(optimizer)
                scaler.update()
                if overflow:
                    assert_untouched(model, before)
                else:
                    moved = [
                        not torch.equal(p.to_local(), v)
                        for p, (_, v) in zip(model.parameters(), before, strict=True)
                    ]
                    assert moved == [v.numel() > 0 for _, v in before]
            assert gathered(scaler.get_scale()) == [4.0] * dist.get_world_size()


def parts_of(model, optimizer, vsam):
    """The state of a run as torch.distributed.checkpoint takes it."""
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "vsam": vsam.state_dict()}


def new_run(shard=sharded):
    model = shard(odd_network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return model, optimizer, METHODS["VSAM"](model)


def go_on(model, optimizer, vsam, steps):
    return train(model, vsam, [share(*whole(step, SIZE)) for step in steps], optimizer)


STOP, END = 15, 34  # with a PSF that is reused, within a window
SIZE = 8 * K  # of all batches together, for every number of processes


def check_checkpoint(folder):
    """Written by two processes, read by two, four and one: all go on as the run that did not stop."""
    files = folder.parent / "checkpoint"
    model, optimizer, vsam = new_run()
    sampled = go_on(model, optimizer, vsam, range(END if dist.get_world_size() == 4 else STOP))
    if dist.get_world_size() == 2:
        dcp.save(parts_of(model, optimizer, vsam), checkpoint_id=files)
        assert vsam.state_dict()["decay"] > 0 and not vsam.sampled, sampled
        sampled += go_on(model, optimizer, vsam, range(STOP, END))
    assert_goes_on(files, sharded, model, sampled[STOP:])
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):  # so says torch to one process
        assert_goes_on(files, lambda m: m.to(here()), model, sampled[STOP:])


def assert_goes_on(files, shard, expected, expected_sampled):
    model, optimizer, vsam = new_run(shard)
    state, alone = parts_of(model, optimizer, vsam), shard is not sharded
    dcp.load(state, checkpoint_id=files, no_dist=alone)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    vsam.load_state_dict(state["vsam"])
    batches = [whole(step, SIZE) for step in range(STOP, END)]
    sampled = train(model, vsam, batches if alone else [share(*b) for b in batches], optimizer)
    assert sampled == expected_sampled
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        p, q = (t.detach().full_tensor() if isinstance(t, DTensor) else t.detach() for t in (p, q))
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-11)


def check_the_older_fsdp_is_refused(folder):
    """Its norms would be those of only one process."""
    model = FullyShardedDataParallel(odd_network().to(here()), device_id=here())
    with pytest.raises(TypeError, match=r"model: expected one sharded by fully_shard \(FSDP2\)"):
        SAM(model)


def check_per_process_is_refused(folder):
    model, (x, y) = sharded(odd_network()), share(*whole(0))
    with pytest.raises(TypeError, match="per_process: expected a SAM made with the DistributedDataParallel"):
        SAM(model).backward(closure_of(model, x, y), per_process=True)
