"""The reference's loop against one that is written out."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, AUSAMBatchSampler

EPOCHS, CLIP = 3, 0.5


@pytest.fixture
def few(example):
    x, y = example.make_data()
    return TensorDataset(x[:250], y[:250])


def by_hand(example, model, few):
    """Without a scaler and torch's averaging, clipped by hand."""
    norms = [p for name, p in model.named_parameters() if p.ndim == 1 and not name.endswith("5.bias")]
    others = [p for p in model.parameters() if all(p is not q for q in norms)]
    optimizer = torch.optim.SGD(
        [{"params": norms}, {"params": others, "weight_decay": 1e-4}], lr=0.05, momentum=0.9
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    averaged, steps = copy.deepcopy(model), 0
    adlp = ADLP(len(few))
    batches = AUSAMBatchSampler(adlp, 64, epochs=EPOCHS, warmup_epochs=0.3)
    loader = DataLoader(few, batch_sampler=batches, collate_fn=example.collate)
    sam = SAM(model, rho=0.05)
    model.train()
    for epoch in range(EPOCHS):
        batches.set_epoch(epoch)
        for index, (image, target) in batches.indexed(loader):

            def one_pass(image=image, target=target):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(model(image), target, reduction="none", label_smoothing=0.1)
                loss.mean().backward()
                return loss

            loss = one_pass()
            with sam.perturbed():
                loss_perturbed = one_pass()
            adlp.update(index, loss, loss_perturbed)
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for mean, value in zip(
                    averaged.state_dict().values(), model.state_dict().values(), strict=True
                ):
                    mean.copy_(mean.lerp(value, 0.1) if steps and value.is_floating_point() else value)
            steps += 1
        schedule.step()
    return averaged


def test_is_ausam_with_clipping_and_averaged_weights(example, few):
    model = example.make_model()
    expected_model = copy.deepcopy(model)
    results = []
    for train in (
        lambda: example.train(model, few, EPOCHS, CLIP),
        lambda: by_hand(example, expected_model, few),
    ):
        torch.manual_seed(1)
        random.seed(1)
        results.append(train())
    for kind, a, b in (("weights", model, expected_model), ("averaged", *results)):
        for (name, value), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            if value.is_floating_point():  # torch averages BatchNorm's counters too
                assert torch.equal(value, other), f"{kind}: {name}"
    tracked = [int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert tracked == [EPOCHS * 4] * 3  # of one pass a step
