"""skorch: `SAMNet` trains with SAM, `AUSAMNet` also with the samples that AUSAM chooses.

skorch calls `optimizer.step(closure)`, so the bridge to SAM is `initialize_optimizer`, which wraps the
optimizer. For AUSAM, `get_iterator` gives the chosen batches, `get_loss` keeps the losses of both passes,
and `train_step` records them. `rho` is a parameter of the net as any other: a grid search can vary it.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from torch import nn
from torch.utils.data import DataLoader

from ausam_ext import ADLP, SAM, AUSAMBatchSampler
from ausam_ext.integrations import SAMOptimizer


class SAMNet(NeuralNetClassifier):
    def __init__(self, *args, rho=0.05, **kwargs):
        super().__init__(*args, **kwargs)
        self.rho = rho

    def initialize_optimizer(self, *args, **kwargs):
        super().initialize_optimizer(*args, **kwargs)
        self.optimizer_ = SAMOptimizer(self.optimizer_, SAM(self.module_, rho=self.rho))
        return self


class AUSAMNet(SAMNet):
    """Needs a criterion with `criterion__reduction="none"`."""

    def get_iterator(self, dataset, training=False):
        if not training:
            return super().get_iterator(dataset, training)
        self.adlp_ = ADLP(len(dataset))
        batches = AUSAMBatchSampler(self.adlp_, self.batch_size, epochs=self.max_epochs, warmup_epochs=0.3)
        self.chosen_ = Chosen(batches.indexed(DataLoader(dataset, batch_sampler=batches)))
        return self.chosen_

    def get_loss(self, y_pred, y_true, *args, training=False, **kwargs):
        loss = super().get_loss(y_pred, y_true, *args, training=training, **kwargs)
        if training:
            self.losses_.append(loss.detach())
        return loss.mean()

    def train_step(self, batch, **fit_params):
        self.losses_ = []  # of the first pass, then of the second
        step = super().train_step(batch, **fit_params)
        self.adlp_.update(self.chosen_.index, *self.losses_)
        return step


class Chosen:
    """Gives skorch the batches that it expects, and keeps which samples the last one has."""

    def __init__(self, indexed):
        self.indexed = indexed

    def __iter__(self):
        for index, batch in self.indexed:
            self.index = index
            yield batch


def make_net(kind=SAMNet, **options):
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    options = {"batch_size": 64, "max_epochs": 10, "verbose": 0, **options}
    return kind(
        module,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        lr=0.05,
        **options,
    )


def make_data():
    x, y = load_digits(return_X_y=True)
    return train_test_split((x / 16).astype(np.float32), y, random_state=0)


if __name__ == "__main__":
    torch.manual_seed(0)
    x, x_test, y, y_test = make_data()
    for net in (make_net(SAMNet), make_net(AUSAMNet, criterion__reduction="none")):
        net.fit(x, y)
        print(f"{type(net).__name__}: accuracy {net.score(x_test, y_test):.3f}")
