"""Checks an installed package, with the Python that it is installed for: check_installed.py FOLDER KERNELS.

The package has to come from FOLDER, its CPU kernels have to be KERNELS and to agree with the reference. CUDA
kernels have to be registered if they are installed and torch has CUDA. Prints the version of torch and the
facts of the build.
"""

import json
import sys
from pathlib import Path

import torch

import ausam_ext
from ausam_ext import ops, reference

N, K = 1000, 400


def check_sampling():
    scores, noise = torch.randn(3, N), torch.empty(3, N).exponential_()
    given = {"s_min": 0.1, "s_max": 1.0, "noise": noise}
    assert torch.equal(ops.subset_sample(scores, K, **given), reference.subset_sample(scores, K, **given))
    total, count, index = torch.rand(N), torch.randint(0, 3, (N,), dtype=torch.int32), torch.randperm(N)
    table, given["noise"] = (total, count, index), noise[0]
    assert torch.equal(ops.adlp_sample(*table, K, **given), reference.adlp_sample(*table, K, **given))


def check_statistics():
    index, loss, loss_perturbed = torch.randperm(N)[:K], torch.rand(K), torch.rand(K)
    tables = [(torch.zeros(N), torch.zeros(N, dtype=torch.int32)) for _ in range(2)]
    given = {"invalid": torch.zeros((), dtype=torch.int32), "tried": torch.zeros(N, dtype=torch.uint8)}
    ops.adlp_update_(*tables[0], index, loss, loss_perturbed, **given)  # optional arguments given
    reference.adlp_update_(*tables[1], index, loss, loss_perturbed)  # and left out
    torch.testing.assert_close(tables[0], tables[1], rtol=0, atol=0)
    assert tables[0][1].sum() == K
    norms = torch.rand(53)
    torch.testing.assert_close(ops.sliced_variance(norms, 5), reference.sliced_variance(norms, 5))
    try:
        ops.adlp_update_(*tables[0], index + N, loss, loss_perturbed)
    except IndexError:
        return
    raise AssertionError("an index outside the table was taken")


def check_tensor_lists():
    params = [torch.randn(17, 5), torch.randn(5000), torch.randn(3, 4, dtype=torch.float64)]
    grads = [torch.randn_like(p) for p in params]
    results = []
    for f in (ops, reference):
        w, psf = [p.clone() for p in params], [g.clone() for g in grads]
        backups = [torch.empty_like(p) for p in w]
        norm = f.perturb_(w, grads, backups, 0.05)
        perturbed = [p.clone() for p in w]
        f.restore_(w, backups)
        torch.testing.assert_close(w, params, rtol=0, atol=0)
        norms = f.psf_capture_(psf, perturbed, norm_last=2)
        f.psf_reuse_(w, psf, torch.tensor(0.5))
        results.append([norm, *perturbed, *norms, *psf, *w])
    torch.testing.assert_close(results[0], results[1])
    assert not torch.equal(results[0][1], params[0])


def main(folder, kernels):
    found = Path(ausam_ext.__file__).resolve()
    assert found.is_relative_to(Path(folder).resolve()), f"{found} was imported"
    live = ausam_ext.backends()["cpu"]
    assert live.kernels == kernels, live
    torch.manual_seed(0)
    check_sampling()
    check_statistics()
    check_tensor_lists()
    facts = {"torch": torch.__version__.split("+")[0]}
    if kernels == "compiled":
        from ausam_ext import _C

        facts["built_with"] = _C.built_with_torch
        facts |= {"built_with_cuda": _C.built_with_cuda, "no_cuda": _C.no_cuda}
    cuda = ausam_ext.backends()["cuda"]
    live = bool(torch.version.cuda and facts.get("built_with_cuda"))
    assert (cuda.kernels == "compiled") == live, cuda
    assert torch._C._dispatch_has_kernel_for_dispatch_key("ausam_ext::dlp", "CUDA") == live
    print(json.dumps(facts))


main(*sys.argv[1:])
