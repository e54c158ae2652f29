"""Composer's Trainer with the algorithm, against a loop by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ausam_ext import SAM, VSAM

EPOCHS, STEPS, CLIP = 3, 22, 0.3


@pytest.fixture
def train(example, monkeypatch):
    class InOrder(torch.utils.data.DataLoader):
        def __init__(self, dataset, batch_size, shuffle=False):
            super().__init__(dataset, batch_size)

    monkeypatch.setattr(example, "DataLoader", InOrder)
    return example.train


def sam(model):
    return SAM(model, rho=0.05)


def vsam(model):
    return VSAM(model, rho=0.05, warmup_steps=20)


def by_hand(example, net, make, micro_batch, clip=CLIP):
    """Also the loss of the last step."""
    (x, y), _ = (data.tensors for data in example.make_data())
    optimizer, method = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9), make(net)

    def backward(rows):
        total = 0.0
        for part in rows.split(micro_batch):
            loss = F.cross_entropy(net(x[part]), y[part]) * (len(part) / len(rows))
            loss.backward()
            total += loss.item()
        return total

    for step in range(EPOCHS * STEPS):
        rows = torch.arange(len(x)).split(64)[step % STEPS]
        done = max(step - 1, 0)  # Composer's schedules are a step late, without SAM too
        ramp, share = done / STEPS, (done - STEPS) / ((EPOCHS - 1) * STEPS)
        optimizer.param_groups[0]["lr"] = 0.1 * (ramp if ramp < 1 else (1 + math.cos(math.pi * share)) / 2)
        loss = backward(rows)
        if isinstance(method, VSAM) and not method.decide():
            method.reuse_()
        else:
            with method.perturbed():
                backward(rows)
        nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return loss


def assert_close(model, net):
    torch.testing.assert_close(model.module.state_dict(), net.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [64, 24])
@pytest.mark.parametrize("make", [sam, vsam])
def test_both_passes_take_all_micro_batches_and_the_gradient_is_clipped_once(
    example, train, make, micro_batch
):
    model = example.make_model()
    net = copy.deepcopy(model.module)
    trainer = train(model, make, EPOCHS, CLIP, device_train_microbatch_size=micro_batch)
    loss = by_hand(example, net, make, micro_batch)
    assert_close(model, net)
    logged = trainer.state.total_loss_dict["loss/train/total"]
    torch.testing.assert_close(logged, loss, rtol=1e-4, atol=0.0)  # of the first pass


def test_is_the_sam_that_composer_has(example, train, monkeypatch):
    from composer.algorithms import SAM as ComposersSAM

    model = example.make_model()
    other = copy.deepcopy(model)
    train(model, sam, EPOCHS, clip=1e9)
    monkeypatch.setattr(example, "SAMAlgorithm", lambda make: ComposersSAM(rho=0.05))
    with pytest.warns(UserWarning, match="known issues"):
        train(other, sam, EPOCHS, clip=1e9)
    # Its BatchNorm also sees the second passes.
    torch.testing.assert_close(list(model.parameters()), list(other.parameters()), rtol=1e-5, atol=1e-6)
    assert (
        model.module[1].num_batches_tracked * 2 == other.module[1].num_batches_tracked == 2 * EPOCHS * STEPS
    )


@pytest.mark.parametrize("make", [sam, vsam])
def test_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(example, train, make, tmp_path):
    from composer.callbacks import CheckpointSaver

    model = example.make_model()
    other = copy.deepcopy(model)
    trainer = train(model, make, EPOCHS, save_folder=str(tmp_path), save_filename="ep{epoch}.pt")
    train(other, make, EPOCHS, load_path=str(tmp_path / "ep1.pt"))
    for saver in trainer.state.callbacks:
        if isinstance(saver, CheckpointSaver):
            saver.tmp_dir_for_symlink.cleanup()  # which Composer leaves to the garbage collector
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def test_clipping_in_each_pass_is_refused(example):
    algorithm = example.SAMAlgorithm(sam)
    model = example.make_model()
    clipping = example.GradientClipping("norm", 1.0)
    with pytest.raises(TypeError, match="clips in each pass"):
        example.Trainer(
            model=model,
            algorithms=[algorithm, clipping],
            optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
            device="cpu",
        )
