"""torchvision: AUSAM and SAM in `train_one_epoch` of its `references/classification/train.py`.

The bridge is `with sam.perturbed()`, and `batches.indexed(data_loader)` around the loader. AUSAM asks for the
loss of each sample: `reduction="none"`. What the reference does after `backward()` follows both passes:
unscaling, clipping, the step, the moving average. MixUp and CutMix are in `collate`, so both passes see the
same images.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.ops import Conv2dNormActivation
from torchvision.ops._utils import split_normalization_params
from torchvision.transforms import v2

from ausam_ext import ADLP, SAM, AUSAMBatchSampler

mixup_or_cutmix = v2.RandomChoice([v2.MixUp(num_classes=10), v2.CutMix(num_classes=10)])


def collate(samples):
    return mixup_or_cutmix(*default_collate(samples))


def make_data():
    """Digits as images of 16 x 16 pixels."""
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return F.interpolate(x, size=16, mode="bilinear"), torch.tensor(y)


def make_model():
    """A small one; any of `torchvision.models` trains alike."""
    convolutions = [Conv2dNormActivation(a, b, stride=2) for a, b in ((1, 16), (16, 32), (32, 64))]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def train_one_epoch(
    model, criterion, optimizer, data_loader, model_ema, scaler, sam, batches, clip_grad_norm
):
    model.train()
    for index, (image, target) in batches.indexed(data_loader):

        def one_pass(image=image, target=target):
            with torch.amp.autocast("cpu", torch.bfloat16):
                loss = criterion(model(image), target)
            scaler.scale(loss.mean()).backward()
            return loss

        optimizer.zero_grad()
        loss = one_pass()
        with sam.perturbed():
            loss_perturbed = one_pass()
        batches.adlp.update(index, loss, loss_perturbed, skip=sam.overflow)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        model_ema.update_parameters(model)


def train(model, dataset, epochs=6, clip=1.0):
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")
    norms, others = split_normalization_params(model)
    groups = [{"params": norms, "weight_decay": 0.0}, {"params": others, "weight_decay": 1e-4}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    scaler = torch.amp.GradScaler("cpu")
    sam = SAM(model, rho=0.05, scaler=scaler)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    batches = AUSAMBatchSampler(ADLP(len(dataset)), batch_size=64, epochs=epochs, warmup_epochs=0.3)
    data_loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        train_one_epoch(model, criterion, optimizer, data_loader, ema, scaler, sam, batches, clip)
        lr_scheduler.step()
    return ema.module


if __name__ == "__main__":
    torch.manual_seed(0)
    x, y = make_data()
    averaged = train(make_model(), TensorDataset(x[:1280], y[:1280])).eval()
    with torch.no_grad():
        right = averaged(x[1280:]).argmax(1) == y[1280:]
    print(f"accuracy of the averaged weights {right.float().mean():.3f}")
