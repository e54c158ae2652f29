"""Keras: the weights of the same network in PyTorch; its clipping, schedule and accumulation; vSAM; AUSAM."""

import pytest
import torch
from torch import nn

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler

EPOCHS = 2


@pytest.fixture
def data(example):
    x, y = example.load_digits(return_X_y=True)
    return (x[:500] / 16).astype("float32"), y[:500]


@pytest.fixture
def made(example):
    """A Keras model and its copy in PyTorch."""

    def make(kind=None, **loss_options):
        example.keras.utils.set_random_seed(0)
        model = example.make_model(kind or example.SAMModel, **loss_options)
        first, norm, _, last = copy = nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64, eps=1e-3, momentum=0.01), nn.ReLU(), nn.Linear(64, 10)
        )
        kernel, bias, scale, shift, last_kernel, last_bias = (
            v.value.detach() for v in model.trainable_weights
        )
        with torch.no_grad():
            for p, value in zip(
                (first.weight, first.bias, norm.weight, norm.bias, last.weight, last.bias),
                (kernel.T, bias, scale, shift, last_kernel.T, last_bias),
                strict=True,
            ):
                p.copy_(value)
        return model, copy

    return make


def assert_same(model, copy):
    first, norm, _, last = copy
    theirs = first.weight.T, first.bias, norm.weight, norm.bias, last.weight.T, last.bias
    ours = [v.value for v in model.trainable_weights]
    torch.testing.assert_close(ours, list(theirs), rtol=1e-4, atol=1e-5, check_stride=False)
    statistics = {v.name: v.value.detach() for v in model.non_trainable_weights}
    torch.testing.assert_close(statistics["moving_mean"], norm.running_mean, rtol=1e-4, atol=1e-5)


def batches_of(data, size=50):
    x, y = map(torch.tensor, data)
    return [
        (None, xs, ys) for _ in range(EPOCHS) for xs, ys in zip(x.split(size), y.split(size), strict=True)
    ]


def fit(model, data):
    return model.fit(*data, batch_size=50, epochs=EPOCHS, shuffle=False, verbose=0)


@pytest.mark.parametrize("method", ["SAM", "VSAM"])
def test_weights_and_statistics_are_those_of_a_loop_by_hand(example, made, data, by_hand, method):
    make = {"SAM": lambda model: SAM(model, rho=0.05), "VSAM": lambda model: VSAM(model, warmup_steps=4)}[
        method
    ]

    class Model(example.SAMModel):
        def make_sam(self):
            return make(self)

    model, copy = made(Model)
    fit(model, data)
    optimizer = torch.optim.SGD(copy.parameters(), lr=0.1, momentum=0.9)
    by_hand(copy, optimizer, make(copy), batches_of(data))
    assert_same(model, copy)


def test_clipping_and_schedule(example, made, data, by_hand):
    """Once, on the gradient of the second pass."""
    model, copy = made()
    rate = example.keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=5, decay_rate=0.5)
    sgd = example.keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=0.5)
    model.compile(optimizer=sgd, loss=model.loss)
    fit(model, data)
    # Without a rate in the momentum, as Keras has it.
    buffers = [torch.zeros_like(p) for p in copy.parameters()]
    plain = torch.optim.SGD(copy.parameters(), lr=1.0)

    def before_step(step):
        nn.utils.clip_grad_norm_(copy.parameters(), 0.5)
        for p, buffer in zip(copy.parameters(), buffers, strict=True):
            p.grad = buffer.mul_(0.9).add_(p.grad, alpha=0.1 * 0.5 ** (step / 5)).clone()

    by_hand(copy, plain, SAM(copy, rho=0.05), batches_of(data), before_step=before_step)
    assert_same(model, copy)


def test_scaled_losses(example, made, data, by_hand):
    """By a scale that changes, as with `mixed_float16`."""
    model, copy = made()
    sgd = example.keras.optimizers.SGD(0.1, momentum=0.9)
    scaled = example.keras.optimizers.LossScaleOptimizer(sgd, initial_scale=64.0, dynamic_growth_steps=4)
    model.compile(optimizer=scaled, loss=model.loss)
    fit(model, data)
    assert float(scaled.dynamic_scale) == 64.0 * 2**5
    by_hand(copy, torch.optim.SGD(copy.parameters(), lr=0.1, momentum=0.9), SAM(copy), batches_of(data))
    assert_same(model, copy)


def test_accumulation_is_the_mean_of_the_sam_gradients(example, made, data):
    """Of one perturbation for each batch."""
    model, copy = made()
    sgd = example.keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    model.compile(optimizer=sgd, loss=model.loss)
    fit(model, data)
    sam, params, kept = SAM(copy, rho=0.05), list(copy.parameters()), []
    for _, x, y in batches_of(data):
        nn.functional.cross_entropy(copy(x), y).backward()
        with sam.perturbed():
            nn.functional.cross_entropy(copy(x), y).backward()
        kept.append([p.grad for p in params])
        copy.zero_grad()
        if len(kept) == 2:
            with torch.no_grad():
                for p, *grads in zip(params, *kept, strict=True):
                    p.sub_(0.1 * sum(grads) / 2)
            kept.clear()
    assert_same(model, copy)


def test_ausam(example, made, data, by_hand, chosen):
    example.keras.utils.set_random_seed(0)
    model = example.train_ausam(*data, epochs=3)
    _, copy = made()
    x, y = map(torch.tensor, data)
    adlp = ADLP(len(x))
    batches = AUSAMBatchSampler(adlp, batch_size=64, epochs=3, warmup_epochs=0.3)
    optimizer = torch.optim.SGD(copy.parameters(), lr=0.1, momentum=0.9)
    by_hand(copy, optimizer, SAM(copy, rho=0.05), chosen(batches, 3, x, y), adlp)
    assert_same(model, copy)
    assert torch.equal(model.adlp.count, adlp.count) and adlp.count.sum() == 500 + 2 * 250


def test_what_fit_reports_is_of_the_first_pass(example, made, data):
    model, copy = made()
    x, y = (part[:50] for part in data)
    history = model.fit(x, y, batch_size=50, epochs=1, verbose=0).history
    with torch.no_grad():
        logits = copy(torch.tensor(x))
    loss = nn.functional.cross_entropy(logits, torch.tensor(y)).item()
    accuracy = (logits.argmax(1) == torch.tensor(y)).double().mean().item()
    assert history["loss"] == pytest.approx([loss]) and history["accuracy"] == pytest.approx([accuracy])
