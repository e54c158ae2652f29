"""Ignite: the weights of a loop by hand, its schedule, and a run that goes on from Ignite's checkpoint."""

import math
from itertools import pairwise

import pytest
import torch
from torch.utils.data import DataLoader

from ausam_ext import ADLP, SAM, AUSAMBatchSampler

EPOCHS, BATCHES = 4, 29


@pytest.fixture
def run(example):
    def make():
        torch.manual_seed(0)
        model = example.make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        data = example.make_data()
        adlp = ADLP(len(data))
        batches = AUSAMBatchSampler(adlp, batch_size=64, epochs=EPOCHS, warmup_epochs=0.3)
        trainer = example.make_trainer(model, optimizer, SAM(model, rho=0.05), adlp)
        loader = batches.indexed(DataLoader(data, batch_sampler=batches))
        return trainer, loader, {"model": model, "optimizer": optimizer, "adlp": adlp, "batches": batches}

    return make


def test_weights_are_those_of_a_loop_by_hand(example, by_hand, chosen):
    torch.manual_seed(0)
    theirs, _ = example.train(EPOCHS)
    torch.manual_seed(0)
    model = example.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = example.make_data().tensors
    adlp = ADLP(len(x))
    batches = AUSAMBatchSampler(adlp, batch_size=64, epochs=EPOCHS, warmup_epochs=0.3)

    def schedule(step):
        optimizer.param_groups[0]["lr"] = 0.1 - 0.05 * (1 - math.cos(math.pi * (step / (EPOCHS * BATCHES))))

    by_hand(model, optimizer, SAM(model), chosen(batches, EPOCHS, x, y), adlp, before_step=schedule)
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), model.parameters(), strict=True))


def test_each_epoch_has_batches_of_its_own(run):
    from ignite.engine import Events

    trainer, loader, parts = run()
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append((engine.state.epoch, engine.state.batch[0]))
    )
    trainer.run(loader, max_epochs=EPOCHS)
    epochs = [torch.cat([index for at, index in seen if at == epoch]) for epoch in range(1, EPOCHS + 1)]
    assert [len(index.unique()) for index in epochs] == [1797] + [28 * 32 + 2] * 3
    assert not any(torch.equal(a, b) for a, b in pairwise(epochs))
    assert parts["adlp"].count.sum() == len(torch.cat(epochs))


@pytest.mark.parametrize("stop", [BATCHES * 2, BATCHES + 7])
def test_goes_on_from_a_checkpoint(run, tmp_path, stop):
    from ignite.engine import Events
    from ignite.handlers import Checkpoint, DiskSaver

    trainer, loader, whole = run()
    trainer.run(loader, max_epochs=EPOCHS)

    trainer, loader, parts = run()
    save = Checkpoint({**parts, "trainer": trainer}, DiskSaver(tmp_path, require_empty=False))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop), save)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop), trainer.terminate)
    trainer.run(loader, max_epochs=EPOCHS)

    trainer, loader, parts = run()
    [path] = tmp_path.iterdir()
    Checkpoint.load_objects({**parts, "trainer": trainer}, path)
    trainer.run(loader, max_epochs=EPOCHS)
    assert trainer.state.iteration == EPOCHS * BATCHES
    for ours, theirs in zip(parts["model"].parameters(), whole["model"].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(parts["adlp"].count, whole["adlp"].count)
