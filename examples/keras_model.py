"""Keras 3 on PyTorch: SAM, vSAM and AUSAM in `fit`, with Keras' optimizers, schedules and metrics.

The bridge is `SAMModel.train_step`: Keras' own, with the second pass before `optimizer.apply`. For AUSAM,
the loader's batches are `(x, y, index)`, the loss has `reduction=None`, and the callback `Epochs` says
where an epoch begins, which Keras tells no batch sampler. vSAM is not for `mixed_float16`, which
changes the scale of the losses.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported

import keras
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler


class SAMModel(keras.Model):
    sam = None

    def train_step(self, data):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        if self.sam is None:  # the weights are there now; Keras would track what is assigned to it
            object.__setattr__(self, "sam", self.make_sam())
        self.zero_grad()
        y_pred, loss = self.one_pass(x, y, weight)
        if not isinstance(self.sam, VSAM) or self.sam.decide():
            with self.sam.perturbed():
                self.one_pass(x, y, weight)
        else:
            self.sam.reuse_()
        with torch.no_grad():
            self.optimizer.apply([v.value.grad for v in self.trainable_weights], self.trainable_weights)
        self._loss_tracker.update_state(loss.detach(), sample_weight=len(x))
        return self.compute_metrics(x, y, y_pred, sample_weight=weight)

    def make_sam(self):
        return SAM(self, rho=0.05)

    def one_pass(self, x, y, weight):
        y_pred = self(x, training=True)
        loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weight)
        self.optimizer.scale_loss(loss).backward()  # apply() divides again
        return y_pred, loss


class AUSAMModel(SAMModel):
    def train_step(self, data):
        x, y, index = data
        object.__setattr__(self, "passes", [])  # the losses of the first, then of the second
        logs = super().train_step((x, y))
        self.adlp.update(index, *self.passes)
        return logs

    def compute_loss(self, *args, training=True, **kwargs):
        loss = super().compute_loss(*args, training=training, **kwargs)
        if training:
            self.passes.append(loss.detach())
        return loss.mean()


class Epochs(keras.callbacks.Callback):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.set_epoch(epoch)


def make_model(kind, **loss_options):
    inputs = keras.Input((64,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(64)(inputs))
    model = kind(inputs, keras.layers.Dense(10)(keras.layers.ReLU()(hidden)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, **loss_options)
    model.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9), loss=loss, metrics=["accuracy"])
    return model


def train_ausam(x, y, epochs=5):
    model = make_model(AUSAMModel, reduction=None)
    model.adlp = ADLP(len(x))
    batches = AUSAMBatchSampler(model.adlp, batch_size=64, epochs=epochs, warmup_epochs=0.3)
    data = TensorDataset(torch.tensor(x), torch.tensor(y), torch.arange(len(x)))
    loader = DataLoader(data, batch_sampler=batches)
    model.fit(loader, epochs=epochs, shuffle=False, callbacks=[Epochs(batches)], verbose=0)
    return model


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    model = make_model(SAMModel)
    model.fit(x, y, batch_size=64, epochs=5, verbose=2)
    print(f"AUSAM: accuracy {train_ausam(x, y).evaluate(x, y, verbose=0, return_dict=True)['accuracy']:.3f}")
