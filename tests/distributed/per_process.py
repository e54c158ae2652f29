"""Checks of a perturbation of each process's own (m-sharpness), with DistributedDataParallel."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from distributed.processes import assert_same_everywhere, gathered, here
from distributed.training import assert_equal_weights, closure_of, counting, share, whole, wrapped
from networks import mlp
from sam.oracle import sam_gradient_float64

from ausam_ext import SAM


def check_each_process_may_perturb_by_its_own_gradient(folder):
    for adaptive in (False, True):
        start, (x, y) = mlp(torch.float64), share(*whole(1))
        implicit, explicit, both = wrapped(start), wrapped(start), wrapped(start)
        counts = [counting(m) for m in (implicit, explicit, both)]
        SAM(implicit, 0.5, adaptive=adaptive).backward(closure_of(implicit, x, y), per_process=True)

        with explicit.no_sync():  # the forward pass too
            F.cross_entropy(explicit(x), y).backward()
        with SAM(explicit, 0.5, adaptive=adaptive).perturbed():
            F.cross_entropy(explicit(x), y).backward()

        SAM(both, 0.5, adaptive=adaptive).backward(closure_of(both, x, y))
        assert list(map(len, counts)) == [1, 1, 2]

        mine = sam_gradient_float64(start.to(here()), x, y, 0.5, adaptive)
        exact = sum(g.to(here()) for g in gathered(mine.cpu())) / dist.get_world_size()
        got = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (implicit, explicit, both)]
        torch.testing.assert_close(got[0], exact, rtol=1e-11, atol=1e-13)
        assert torch.equal(got[0], got[1])
        assert (got[2] - exact).norm() > 1e-4 * exact.norm()  # another thing than the global perturbation
        assert_same_everywhere(got)


def check_per_process_with_options_of_the_wrapper(folder):
    results = []
    for options in ({}, {"gradient_as_bucket_view": True}, {"bucket_cap_mb": 1e-4}):
        model = wrapped(mlp(torch.float64), **options)
        sam, optimizer = SAM(model, 0.5), torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(5):
            sam.backward(closure_of(model, *share(*whole(step))), per_process=True)
            optimizer.step()
        assert_same_everywhere(model.parameters())
        results.append(model)
    for other in results[1:]:
        assert_equal_weights(other, results[0])


def check_per_process_is_refused_for_a_static_graph(folder):
    model = wrapped(mlp(torch.float64), static_graph=True)
    with pytest.raises(ValueError, match="per_process: expected static_graph=False"):
        SAM(model).backward(closure_of(model, *share(*whole(0))), per_process=True)
    assert all(p.grad is None for p in model.parameters())
