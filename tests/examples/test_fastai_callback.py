"""What fastai's callbacks do to a gradient, they do to SAM's: each run against a loop by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F

from ausam_ext import SAM, VSAM

# At import it compiles functions that it does not use, as TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")

BATCH, EPOCHS, LR = 64, 2, 0.1


@pytest.fixture
def fit(example):
    """Trains through fastai; returns the learner and a copy of the model as it was before."""
    from fastai.optimizer import OptimWrapper

    def run(make, *callbacks):
        def sgd(params, **options):
            return OptimWrapper(params, torch.optim.SGD, **options)

        torch.manual_seed(0)
        learn = example.make_learner([example.SAMCallback(make), *callbacks], shuffle=False, opt_func=sgd)
        model = copy.deepcopy(learn.model)
        with learn.no_bar(), learn.no_logging():
            learn.fit(EPOCHS, LR, wd=0)
        return learn, model

    return run


def plain_sam(model):
    return SAM(model, rho=0.05)


def by_hand(model, learn, make=plain_sam, n_acc=None, clip=None, penalty=0.0, dtype=torch.float32):
    x, y = map(torch.stack, zip(*learn.dls.train.dataset, strict=True))
    optimizer, sam = torch.optim.SGD(model.parameters(), lr=LR), make(model)
    kept = []

    def backward(i):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            pred = model(x[i])
        loss = F.cross_entropy(pred.float(), y[i]) + penalty * pred.float().square().mean()
        (loss if n_acc is None else loss / (n_acc / len(i))).backward()

    for _ in range(EPOCHS):
        for i in torch.arange(len(x)).split(BATCH):
            backward(i)
            kept.append(i)
            if n_acc is not None and sum(map(len, kept)) < n_acc:
                continue  # also over the end of an epoch, as fastai does
            if isinstance(sam, VSAM) and not sam.decide():
                sam.reuse_()
            else:
                with sam.perturbed():
                    for j in kept:
                        backward(j)
            kept = []
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return model


def assert_same(model, other):
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_is_sam(fit):
    learn, model = fit(plain_sam)
    assert_same(learn.model, by_hand(model, learn))


def test_is_vsam_and_clips_what_the_step_takes(example, fit):
    def make(model):
        return VSAM(model, rho=0.05, warmup_steps=8)

    learn, model = fit(make, example.GradientClip(0.05))
    assert learn.sam.method.sampled is False  # both kinds of step
    assert_same(learn.model, by_hand(model, learn, make, clip=0.05))


def test_accumulates_in_both_passes(example, fit):
    learn, model = fit(plain_sam, example.GradientAccumulation(2 * BATCH))
    assert_same(learn.model, by_hand(model, learn, n_acc=2 * BATCH))


def test_callbacks_that_change_the_loss_do_so_in_both_passes(example, fit):
    class Penalty(example.Callback):
        def after_loss(self):
            if self.training:
                self.learn.loss_grad = self.learn.loss_grad + 0.1 * self.pred.square().mean()

    learn, model = fit(plain_sam, Penalty())
    assert_same(learn.model, by_hand(model, learn, penalty=0.1))


@pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")  # fastai asks for its autocast
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mixed_precision_in_both_passes(example, fit, dtype):
    class OnTheCPU(example.MixedPrecision):
        """As fastai's, whose autocast and scaler are for GPUs only."""

        def before_fit(self):
            super().before_fit()
            self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
            self.learn.scaler = torch.amp.GradScaler("cpu", init_scale=4096.0, enabled=dtype == torch.float32)

    mixed = OnTheCPU(amp_mode="bf16")
    clip = example.GradientClip(0.05)
    learn, model = fit(lambda model: SAM(model, rho=0.05, scaler=mixed.learn.scaler), mixed, clip)
    assert_same(learn.model, by_hand(model, learn, clip=0.05, dtype=dtype))


def test_logs_the_loss_at_the_weights(fit):
    learn, model = fit(plain_sam)
    x, y = map(torch.stack, zip(*learn.dls.train.dataset, strict=True))
    expected = F.cross_entropy(model(x[:BATCH]), y[:BATCH])
    torch.testing.assert_close(learn.recorder.losses[0].as_subclass(torch.Tensor), expected.detach())


def test_mixup_is_the_same_in_both_passes(example, fit):
    def run(callback):
        torch.manual_seed(0)
        learn = example.make_learner([MixUp(), callback], shuffle=False)
        with learn.no_bar(), learn.no_logging():
            learn.fit(EPOCHS, LR)
        return learn.model

    from fastai.callback.mixup import MixUp

    radius_0 = example.SAMCallback(lambda model: SAM(model, rho=0.0))
    assert_same(run(radius_0), run(example.Callback()))


def test_mixup_and_accumulation_are_refused_together(example, fit):
    from fastai.callback.mixup import MixUp

    with pytest.raises(RuntimeError, match="knows only its last batch"):
        fit(plain_sam, MixUp(), example.GradientAccumulation(2 * BATCH))
