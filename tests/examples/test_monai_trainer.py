"""MONAI: the weights of a loop by hand, with its handler's schedule."""

import pytest
import torch

from ausam_ext import SAM, VSAM

METHODS = {"SAM": lambda model: SAM(model, rho=0.05), "VSAM": lambda model: VSAM(model, warmup_steps=6)}


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_those_of_a_loop_by_hand(example, method):
    epochs = 12  # the schedule's step is in the tenth
    torch.manual_seed(0)
    data, theirs = example.make_data(), example.make_model()
    reported = example.train(theirs, METHODS[method](theirs), data, epochs)

    torch.manual_seed(0)
    data, model = example.make_data(), example.make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    sam, dice, passes = METHODS[method](model), example.DiceLoss(sigmoid=True), []
    x, y = (torch.stack([sample[key] for sample in data]) for key in ("image", "label"))
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 0.02 * 0.1 ** (epoch // 10)
        for xs, ys in zip(x.split(8), y.split(8), strict=True):
            loss = dice(model(xs), ys)
            loss.backward()
            passes.append(not isinstance(sam, VSAM) or sam.decide())
            if passes[-1]:
                with sam.perturbed():
                    dice(model(xs), ys).backward()
            else:
                sam.reuse_()
            optimizer.step()
            optimizer.zero_grad()
    assert all(passes) == (method == "SAM")
    torch.testing.assert_close(list(theirs.parameters()), list(model.parameters()))
    torch.testing.assert_close(list(theirs.buffers()), list(model.buffers()))
    assert reported == pytest.approx(loss.item())
