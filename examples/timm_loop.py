"""timm: AUSAM and SAM in a loop like timm's `train.py`, with its optimizers, schedules, Mixup and EMA.

The bridge is `with sam.perturbed()`, and `batches.indexed(loader)` around the loader. In both passes
`loss_scaler` only calls `backward()` (`need_update=False`); unscaling, clipping and the step follow them.
timm's losses are means, so `per_sample` writes its `SoftTargetCrossEntropy` out. Mixup needs batches of even
length.
"""

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, AUSAMBatchSampler


def make_data():
    """Digits as images of 32 x 32 pixels."""
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    x = F.interpolate(x, size=32, mode="bilinear")
    return TensorDataset(x[:1280], torch.tensor(y)[:1280]), TensorDataset(x[1280:], torch.tensor(y)[1280:])


def make_model():
    return timm.create_model("test_resnet.r160_in1k", pretrained=False, num_classes=10, in_chans=1)


def per_sample(logits, target):
    return torch.sum(-target * F.log_softmax(logits, dim=-1), dim=-1)


def train(model, train_set, epochs=4, clip=1.0, opt="adamw", device="cpu"):
    optimizer = create_optimizer_v2(model, opt=opt, lr=1e-2, weight_decay=0.05)  # or another of timm's
    scheduler, epochs = create_scheduler_v2(optimizer, "cosine", num_epochs=epochs, warmup_epochs=1)
    loss_scaler = NativeScaler(device=device)
    ema = ModelEmaV3(model, decay=0.9)
    mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=10)

    adlp = ADLP(len(train_set), device=device)
    batches = AUSAMBatchSampler(adlp, batch_size=64, epochs=epochs, warmup_epochs=0.3, drop_last=True)
    loader = DataLoader(train_set, batch_sampler=batches)
    sam = SAM(model, rho=0.05, scaler=loss_scaler._scaler)  # where timm keeps the GradScaler

    model.train()
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for index, (x, y) in batches.indexed(loader):
            x, target = mixup(x.to(device), y.to(device))  # once for both passes

            def one_pass(x=x, target=target):
                with torch.autocast(device, torch.bfloat16):
                    loss = per_sample(model(x), target)
                loss_scaler(loss.mean(), optimizer, need_update=False)
                return loss

            loss = one_pass()
            with sam.perturbed():
                loss_perturbed = one_pass()
            adlp.update(index, loss, loss_perturbed, skip=sam.overflow)

            loss_scaler._scaler.unscale_(optimizer)
            dispatch_clip_grad(model.parameters(), clip)
            loss_scaler._scaler.step(optimizer)
            loss_scaler._scaler.update()
            optimizer.zero_grad()
            ema.update(model)
        scheduler.step(epoch + 1)
    return ema.module


def accuracy(model, data):
    x, y = data.tensors
    with torch.no_grad():
        return (model.eval()(x).argmax(1) == y).float().mean().item()


if __name__ == "__main__":
    torch.manual_seed(0)
    train_set, test_set = make_data()
    averaged = train(make_model(), train_set)
    print(f"accuracy of the averaged weights {accuracy(averaged, test_set):.3f}")
