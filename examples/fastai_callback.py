"""fastai: SAM or vSAM in any `Learner`, by a callback; optimizer, schedule and metrics stay as they are.

The bridge is `SAMCallback`. It keeps the batches of a step and takes them once more at the perturbed weights,
before fastai unscales and clips the gradient. Callbacks that change the prediction or the loss act in both
passes, and `GradientAccumulation`, `GradientClip` and `to_bf16()` work as ever. For `to_fp16()`, make the SAM
with `scaler=learn.scaler`. `fit` makes a new SAM each time.
"""

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import MixHandler
from fastai.callback.schedule import fit_one_cycle  # noqa: F401  (gives every Learner this method)
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from sklearn.datasets import load_digits
from torch import nn

from ausam_ext import SAM, VSAM


class SAMCallback(Callback):
    order = GradientAccumulation.order + 1  # after what skips the step, before what changes the gradient

    def __init__(self, make):
        self.make = make

    def before_fit(self):
        self.method, self.kept, self.repeating = None, [], False

    def before_backward(self):
        if not self.repeating:
            self.kept.append((self.xb, self.yb))

    def before_step(self):
        kept, self.kept = self.kept, []
        if len(kept) > 1 and any(isinstance(cb, MixHandler) for cb in self.learn.cbs):
            raise RuntimeError("SAMCallback: MixUp knows only its last batch; use no GradientAccumulation")
        self.method = self.method or self.make(self.model)  # now, as each fit has its scaler
        if isinstance(self.method, VSAM) and not self.method.decide():
            self.method.reuse_()
            return
        learn, self.repeating = self.learn, True
        first = learn.xb, learn.yb, learn.pred, learn.loss, learn.loss_grad  # for metrics and logs
        with self.method.perturbed():
            for xb, yb in kept:
                self.one_pass(learn, xb, yb)
        learn.xb, learn.yb, learn.pred, learn.loss, learn.loss_grad = first
        self.repeating = False

    def one_pass(self, learn, xb, yb):
        """What `Learner` does with a batch, up to its gradient."""
        learn.xb, learn.yb = xb, yb
        for cb in learn.cbs:
            if isinstance(cb, MixedPrecision):
                cb.before_batch()  # enters autocast, which "after_loss" leaves
        learn.pred = learn.model(*xb)
        learn("after_pred")
        learn.loss_grad = learn.loss_func(learn.pred, *yb)
        learn.loss = learn.loss_grad.clone()
        learn("after_loss")
        learn("before_backward")
        learn.loss_grad.backward()


def make_learner(cbs, shuffle=True, **options):
    x, y = load_digits(return_X_y=True)
    data = list(zip(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y), strict=True))
    train = DataLoader(data[:1400], bs=64, shuffle=shuffle, num_workers=0)
    valid = DataLoader(data[1400:], bs=256, num_workers=0)
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    loaders = DataLoaders(train, valid)
    return Learner(loaders, model, CrossEntropyLossFlat(), metrics=accuracy, cbs=cbs, **options)


if __name__ == "__main__":
    torch.manual_seed(0)
    for make in (lambda model: SAM(model, rho=0.05), lambda model: VSAM(model, rho=0.05, warmup_steps=40)):
        learn = make_learner([SAMCallback(make), GradientClip(1.0)])
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(5, 0.01)
        print(f"{type(learn.sam.method).__name__}: accuracy {learn.recorder.values[-1][-1]:.3f}")
