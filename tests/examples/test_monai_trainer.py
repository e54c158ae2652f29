"""MONAI: the weights of a loop by hand, with its schedule and its accumulation; what is reported."""

import pytest
import torch

from ausam_ext import SAM, VSAM

EPOCHS = 12  # the schedule's step is in the tenth
METHODS = {"SAM": lambda model: SAM(model, rho=0.05), "VSAM": lambda model: VSAM(model, warmup_steps=6)}


@pytest.fixture
def made(example):
    def make(method="SAM"):
        torch.manual_seed(0)
        data, model = example.make_data(28), example.make_model()
        return data, model, METHODS[method](model)

    return make


def by_hand(example, data, model, sam):
    """The loss of the last first pass; how many second passes there were."""
    optimizer, dice, second = torch.optim.Adam(model.parameters(), lr=0.02), example.DiceLoss(sigmoid=True), 0
    x, y = (torch.stack([sample[key] for sample in data]) for key in ("image", "label"))
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = 0.02 * 0.1 ** (epoch // 10)
        for xs, ys in zip(x.split(8), y.split(8), strict=True):
            loss = dice(model(xs), ys)
            loss.backward()
            if not isinstance(sam, VSAM) or sam.decide():
                second += 1
                with sam.perturbed():
                    dice(model(xs), ys).backward()
            else:
                sam.reuse_()
            optimizer.step()
            optimizer.zero_grad()
    return loss, second


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_those_of_a_loop_by_hand(example, made, method):
    data, theirs, sam = made(method)
    trainer = example.make_trainer(theirs, sam, data, EPOCHS, decollate=False)
    trainer.run()
    data, model, sam = made(method)
    loss, second = by_hand(example, data, model, sam)
    assert (second == 4 * EPOCHS) == (method == "SAM")
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), model.parameters(), strict=True))
    assert torch.equal(trainer.state.output[example.CommonKeys.LOSS], loss)


def test_accumulation(example, made):
    """With a rest: 7 batches of 4 in an epoch, of which 3 make a step, and the last one makes its own."""
    data, theirs, sam = made()
    trainer = example.make_trainer(theirs, sam, data, epochs=2, batch_size=4, accumulation_steps=3)
    trainer.run()

    data, model, sam = made()
    optimizer, dice = torch.optim.Adam(model.parameters(), lr=0.02), example.DiceLoss(sigmoid=True)
    x, y = (torch.stack([sample[key] for sample in data]).split(4) for key in ("image", "label"))

    def backward(batches):
        for i in batches:
            (dice(model(x[i]), y[i]) / 3).backward()

    for _ in range(2):
        for batches in ((0, 1, 2), (3, 4, 5), (6,)):
            backward(batches)
            with sam.perturbed():
                backward(batches)
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), model.parameters(), strict=True))


def test_amp_is_refused(example, made):
    data, model, sam = made()
    with pytest.raises(TypeError, match="amp=False"):
        example.make_trainer(model, sam, data, amp=True)
