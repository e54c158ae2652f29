"""The names, kinds and defaults of all arguments, written down once more: a default is part of the method."""

from inspect import Parameter, signature

import pytest

import ausam_ext
from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler, RateController, ops

NOISE = "noise=None, generator=None"
ARGUMENTS = {
    ausam_ext.backends: "",
    # AUSAM: the data
    ADLP: "num_samples, device=None",
    ADLP.update: "self, index, loss, loss_perturbed, *, skip=None",
    ADLP.mean: "self, index=None",
    ADLP.to: "self, device",
    ADLP.sync: "self, group=None",
    AUSAMBatchSampler: (
        "adlp, batch_size, alpha=0.5, *, s_min=0.1, s_max=1.0, warmup_epochs=30, full_epochs=1, "
        "shuffle=True, drop_last=False, seed=0, rank=None, num_replicas=None, epochs=None"
    ),
    AUSAMBatchSampler.set_epoch: "self, epoch",
    AUSAMBatchSampler.indexed: "self, loader",
    AUSAMBatchSampler.select: "self, index",
    AUSAMBatchSampler.weights: "self, index, *, normalize=True",
    # SAM and vSAM: the gradient
    SAM: "model, rho=0.05, *, adaptive=False, params=None, maximize=False, groups=(), scaler=None",
    SAM.perturbed: "self",
    SAM.backward: "self, closure, *, same_masks=False, per_process=False",
    VSAM: (
        "model, rho=0.05, *, alpha=0.1, gamma=0.9, window=50, slices=5, max_rate=0.8, initial_samples=1, "
        "warmup_steps, max_reuse=6, norm_params=10, seed=0, bounded=False, initial_rate=None, params=None, "
        "maximize=False, groups=(), scaler=None"
    ),
    VSAM.perturbed: "self",
    VSAM.decide: "self",
    VSAM.reuse_: "self",
    VSAM.backward: "self, closure, *, same_masks=False",
    ausam_ext.Monitor: "sam, batches=None",
    ausam_ext.Monitor.update: "self, loss, loss_perturbed=None",
    ausam_ext.Monitor.compute: "self",
    RateController: "window=50, slices=5, alpha=0.1, max_rate=0.8, initial_samples=1",
    RateController.observe: "self, psf_norm, sgd_norm",
    RateController.update: "self",
    # The operators
    ops.dlp: "loss, loss_perturbed",
    ops.adlp_update_: "total, count, index, loss, loss_perturbed, *, invalid=None, tried=None",
    ops.subset_sample: f"scores, k, *, s_min=0.1, s_max=1.0, {NOISE}",
    ops.adlp_sample: f"total, count, index, k, *, s_min=0.1, s_max=1.0, {NOISE}, invalid=None, tried=None",
    ops.subset_weights: "scores, positions, noise, *, s_min=0.1, s_max=1.0",
    ops.sliced_variance: "norms, slices",
    ops.permute: "position, n, keys",
    ops.perturb_: "params, grads, backups, rho, *, adaptive=False, maximize=False, norm=None",
    ops.restore_: "params, backups",
    ops.psf_capture_: "psf, grads, *, norm_last=None",
    ops.psf_reuse_: "grads, psf, scale, *, limit=None",
}


@pytest.mark.parametrize("function", ARGUMENTS, ids=lambda f: f.__qualname__)
def test_arguments(function):
    own = signature(function)
    bare = [p.replace(annotation=Parameter.empty) for p in own.parameters.values()]
    bare = own.replace(parameters=bare, return_annotation=Parameter.empty)
    assert str(bare) == f"({ARGUMENTS[function]})"


def test_everything_public_is_there():
    operators = {
        name
        for name, value in vars(ops).items()
        if getattr(value, "__module__", "") == ops.__name__ and name[0] != "_"
    }
    assert {*ausam_ext.__all__, *operators} - {"ops"} <= {f.__name__ for f in ARGUMENTS}
