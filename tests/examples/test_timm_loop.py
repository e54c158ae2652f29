"""The loop with timm's parts against one of PyTorch's."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ausam_ext import ADLP, SAM, AUSAMBatchSampler

# At import it compiles activations, as TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")

EPOCHS, CLIP = 3, 0.5


@pytest.fixture
def few(example):
    train_set, _ = example.make_data()
    return torch.utils.data.TensorDataset(*(t[:256] for t in train_set.tensors))


def by_hand(example, model, few):
    """Without timm's scaler, clipping and averaging, with an optimizer of PyTorch."""
    groups = [[p for p in model.parameters() if p.ndim == 1], [p for p in model.parameters() if p.ndim > 1]]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.0}, {"params": groups[1], "weight_decay": 0.05}], lr=1e-5
    )
    averaged = copy.deepcopy(model)
    x, y = few.tensors
    mixup = example.Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=10)
    adlp = ADLP(len(few))
    batches = AUSAMBatchSampler(adlp, 64, epochs=EPOCHS, warmup_epochs=0.3, drop_last=True)
    sam = SAM(model, rho=0.05)
    model.train()
    for epoch in range(EPOCHS):
        batches.set_epoch(epoch)
        for rows in batches:
            images, target = mixup(x[rows].clone(), y[rows])

            def one_pass(images=images, target=target):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = -(target * F.log_softmax(model(images), -1)).sum(-1)
                loss.mean().backward()
                return loss

            loss = one_pass()
            with sam.perturbed():
                loss_perturbed = one_pass()
            adlp.update(torch.tensor(rows), loss, loss_perturbed)
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for mean, value in zip(
                    averaged.state_dict().values(), model.state_dict().values(), strict=True
                ):
                    mean.copy_(mean.lerp(value, 0.1) if value.is_floating_point() else value)
        # One epoch of warmup, then a cosine over all of them.
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + np.cos(np.pi * (epoch + 1) / EPOCHS)) / 2
    return averaged


def test_is_ausam_with_clipping_and_averaged_weights(example, few):
    torch.manual_seed(0)
    model = example.make_model()
    np.random.seed(0)
    expected_model = copy.deepcopy(model)
    averaged = example.train(model, few, EPOCHS, CLIP)
    np.random.seed(0)
    expected = by_hand(example, expected_model, few)
    for kind, a, b in (("weights", model, expected_model), ("averaged", averaged, expected)):
        for (name, value), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.equal(value, other), f"{kind}: {name}"


def test_a_step_that_overflows_changes_neither_weights_nor_table(example, few, monkeypatch):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.999)
    tables = []

    class Overflowing(example.NativeScaler):
        def __init__(self, device):
            self._scaler = scaler

    monkeypatch.setattr(example, "NativeScaler", Overflowing)
    monkeypatch.setattr(
        example, "ADLP", lambda *args, **kwargs: tables.append(ADLP(*args, **kwargs)) or tables[0]
    )
    model = example.make_model()
    before = [p.detach().clone() for p in model.parameters()]
    example.train(model, few, epochs=1)
    assert tables[0].count.sum() == 0
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum':UserWarning")  # by Kron
def test_every_optimizer_of_timm(example, few):
    """But those that need other packages, and AdaHessian, which needs `backward(create_graph=True)`."""
    small = torch.utils.data.TensorDataset(*(t[:64] for t in few.tensors))
    trained = 0
    for name in sorted({*example.timm.optim.list_optimizers()} - {"adahessian"}):
        model = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(16, 10))
        before = model[2].weight.detach().clone()
        try:
            example.create_optimizer_v2(model, opt=name, lr=0.01)
        except (AssertionError, ImportError):
            continue
        example.train(model, small, epochs=2, opt=name)
        assert model[2].weight.isfinite().all() and not torch.equal(model[2].weight, before), name
        trained += 1
    assert trained > 50
