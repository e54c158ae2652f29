"""Composer: SAM or vSAM in its `Trainer`, by an algorithm; optimizer, schedules and micro-batches stay.

The bridge is `SAMAlgorithm`, which wraps the optimizers. The closure that Composer gives them runs all
micro-batches of a step. `GradientClipping` would clip in each pass: clip in a hook of the optimizer instead,
as below. `precision="amp_fp16"` gives no closure, and is refused.
"""

import torch
from composer import Algorithm, Event, Trainer
from composer.algorithms import GradientClipping
from composer.models import ComposerClassifier
from composer.optim import CosineAnnealingWithWarmupScheduler
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import SAM, VSAM
from ausam_ext.integrations import SAMOptimizer


class ClosureSAM(SAMOptimizer):
    """For Composer's closures: they return a number, and log the loss unless they get a `loss_dict`."""

    def step(self, closure=None):
        passes = []

        def one_pass():
            passes.append(torch.tensor(closure(loss_dict={}) if passes else closure()))
            return passes[-1]

        return super().step(closure and one_pass)


class SAMAlgorithm(Algorithm):
    def __init__(self, make):
        self.make = make

    def match(self, event, state):
        return event == Event.BEFORE_LOAD

    def apply(self, event, state, logger):
        if any(isinstance(algorithm, GradientClipping) for algorithm in state.algorithms):
            raise TypeError(
                "SAMAlgorithm: GradientClipping clips in each pass; clip in a hook of the optimizer"
            )
        state.optimizers = tuple(ClosureSAM(o, self.make(state.model)) for o in state.optimizers)


def make_data():
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    return TensorDataset(x[:1408], y[:1408]), TensorDataset(x[1408:], y[1408:])


def make_model():
    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    return ComposerClassifier(net, num_classes=10)


def train(model, make, epochs=5, clip=1.0, **options):
    train_set, eval_set = make_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def clip_gradient(*_):
        nn.utils.clip_grad_norm_(model.parameters(), clip)

    optimizer.register_step_pre_hook(clip_gradient)
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(train_set, batch_size=64, shuffle=True),
        eval_dataloader=DataLoader(eval_set, batch_size=len(eval_set)),
        max_duration=f"{epochs}ep",
        algorithms=[SAMAlgorithm(make)],
        optimizers=optimizer,
        schedulers=CosineAnnealingWithWarmupScheduler(t_warmup="1ep"),
        device="cpu",
        progress_bar=False,
        **options,
    )
    trainer.fit()
    return trainer


if __name__ == "__main__":
    for make in (lambda model: SAM(model, rho=0.05), lambda model: VSAM(model, rho=0.05, warmup_steps=40)):
        torch.manual_seed(0)
        trainer = train(make_model(), make, device_train_microbatch_size=32)
        accuracy = trainer.state.eval_metric_values["MulticlassAccuracy"]
        print(f"{type(trainer.state.optimizers[0].sam).__name__}: accuracy {accuracy:.3f}")
