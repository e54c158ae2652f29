"""Accelerate: the documented loop, its checkpoints, and the adapter behind `accelerator.prepare`."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from distributed.processes import torchrun
from helpers import assert_same_state, same_bits
from integrations.loops import METHODS, sgd, zeroing
from networks import batch, mlp

from ausam_ext import VSAM
from ausam_ext.integrations import SAMOptimizer


@pytest.fixture(autouse=True)
def _fresh():
    """Accelerate keeps its settings for the process."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_the_documented_example(example, accuracy, tmp_path):
    space = example("accelerate")
    adlp, batches = space["adlp"], space["batches"]
    assert accuracy(space["model"], space["train_set"]) > 0.9
    assert adlp.count.sum() == 1797 + 4 * (28 * 32 + 2) and batches.epoch == 5
    space["accelerator"].save_state(tmp_path / "state", safe_serialization=False)
    count = adlp.count.clone()
    adlp.count.zero_()
    batches.set_epoch(0)
    space["accelerator"].load_state(tmp_path / "state")
    assert torch.equal(adlp.count, count) and batches.epoch == 5


SAVE = """
torch.save({"adlp": adlp.state_dict(), "model": model.module.state_dict()}, f"{accelerator.process_index}.pt")
"""


def test_the_documented_example_in_two_processes(tmp_path, code):
    """Each trains on its share; weights and table are the same on both."""
    torchrun(code("accelerate") + SAVE, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert_same_state(first, second)
    # 899 samples in each process: 14 batches of 64 and one of 3, which keep 32 and 2 after the first epoch.
    assert first["adlp"]["count"].sum() == 2 * (899 + 4 * (14 * 32 + 2))
    assert first["adlp"]["count"].min() >= 1


def test_the_documented_closure_example(example, accuracy):
    space = example("closure")
    assert accuracy(space["model"], space["train_set"]) > 0.9
    vsam = space["optimizer"].sam
    assert vsam.controller.state_dict()["count"] > 0 and space["scheduler"].last_epoch == 145


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_prepared_adapter(method, precision, tmp_path):
    """Only the steps of the adapter; a scheduler on top; `save_state` has all of it."""
    plain, (x, y) = mlp(), batch()
    theirs = SAMOptimizer(sgd(plain), METHODS[method](plain))
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    model = accelerator.prepare(mlp())
    optimizer = SAMOptimizer(sgd(model), METHODS[method](model))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    optimizer, scheduler = accelerator.prepare(optimizer, scheduler)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 8)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        accelerator.backward(loss)
        return loss

    def closure_in_bfloat16():
        theirs.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = plain(x)
        loss = F.cross_entropy(out.float(), y)
        loss.backward()
        return loss

    def step(mine=True):
        optimizer.step(closure)
        scheduler.step()
        if mine:
            theirs.step(closure_in_bfloat16 if precision == "bf16" else zeroing(theirs, plain, x, y))
            rates.step()

    def same():
        return all(same_bits(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))

    for _ in range(4):
        step()
        assert same()
    accelerator.save_state(tmp_path, safe_serialization=False)
    for _ in range(2):
        step(mine=False)
    assert not same()
    accelerator.load_state(tmp_path)
    for _ in range(4):
        step()
        assert same()


def steps(sam, optimizer, backward, parts, accumulate, keep):
    """Five steps of all parts; ``keep``: the second pass is of all of them, after the last."""
    for _ in range(5):
        for number, part in enumerate(parts):
            with accumulate():
                backward(part)
                if not keep or number == len(parts) - 1:
                    if not isinstance(sam, VSAM) or sam.decide():
                        with sam.perturbed():
                            for again in parts if keep else [part]:
                                backward(again)
                    else:
                        sam.reuse_()
                optimizer.step()
                optimizer.zero_grad()


@pytest.mark.parametrize("method", METHODS)
def test_accumulate(method):
    """Right with micro-batches that are kept, refused with both passes within each."""
    (x, y), rows = batch(), torch.arange(20)

    def run(keep):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
        model = mlp()
        model, optimizer = accelerator.prepare(model, sgd(model))

        def backward(part):
            accelerator.backward(F.cross_entropy(model(x[part]), y[part]))

        accumulate = lambda: accelerator.accumulate(model)  # noqa: E731
        steps(METHODS[method](model), optimizer, backward, rows.chunk(4), accumulate, keep)
        return model

    alone = mlp()
    whole = lambda part: F.cross_entropy(alone(x[part]), y[part]).backward()  # noqa: E731
    steps(METHODS[method](alone), sgd(alone), whole, [rows], nullcontext, True)
    torch.testing.assert_close(list(run(keep=True).parameters()), list(alone.parameters()))
    with pytest.raises(RuntimeError, match=r"perturbed\(\)"):
        run(keep=False)
