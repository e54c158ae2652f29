"""MONAI: a `SupervisedTrainer` whose steps are those of SAM or vSAM, with any handler and inferer.

The bridge is `iteration_update`: MONAI's own iteration, with the second pass before `optimizer.step()`.
"""

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.utils.enums import CommonKeys

from ausam_ext import VSAM


def sam_update(sam):
    """What `SupervisedTrainer` takes as `iteration_update`."""

    def update(engine, batch):
        x, y = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        engine.network.train()
        engine.optimizer.zero_grad()
        prediction, loss = one_pass(engine, x, y)
        if not isinstance(sam, VSAM) or sam.decide():
            with sam.perturbed():
                one_pass(engine, x, y)
        else:
            sam.reuse_()
        engine.optimizer.step()
        return {
            CommonKeys.IMAGE: x,
            CommonKeys.LABEL: y,
            CommonKeys.PRED: prediction.detach(),
            CommonKeys.LOSS: loss.item(),
        }

    return update


def one_pass(engine, x, y):
    prediction = engine.inferer(x, engine.network)
    loss = engine.loss_function(prediction, y).mean()
    loss.backward()
    return prediction, loss


def make_data(n=32):
    """Noisy images of a square, and where it is."""
    label = torch.zeros(n, 1, 16, 16)
    for mask in label:
        top, left = torch.randint(0, 10, (2,)).tolist()
        mask[:, top : top + 6, left : left + 6] = 1
    image = label + 0.5 * torch.randn(label.shape)
    return [{"image": i, "label": m} for i, m in zip(image, label, strict=True)]


def make_model():
    return UNet(spatial_dims=2, in_channels=1, out_channels=1, channels=(4, 8), strides=(2,))


def train(model, sam, data, epochs=15):
    """Returns the loss of the last iteration."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(data), batch_size=8),
        network=model,
        optimizer=optimizer,
        loss_function=DiceLoss(sigmoid=True),
        iteration_update=sam_update(sam),
        train_handlers=[LrScheduleHandler(schedule, print_lr=False)],
    )
    trainer.run()
    return trainer.state.output[CommonKeys.LOSS]


if __name__ == "__main__":
    torch.manual_seed(0)
    model = make_model()
    loss = train(model, VSAM(model, rho=0.05, warmup_steps=20), make_data())
    print(f"loss {loss:.3f}")
