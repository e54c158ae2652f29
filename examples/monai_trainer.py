"""MONAI: a handler makes the iterations of a `SupervisedTrainer` those of SAM or vSAM.

The bridge is `SAMHandler`. It takes the second pass when MONAI's own iteration has run its backward pass and
has not stepped yet, with `accumulation_steps` over all batches of a step. Inferer, postprocessing, metrics
and schedules stay as they are.
"""

import torch
from monai.data import DataLoader, Dataset
from monai.engines import IterationEvents, SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.utils.enums import CommonKeys

from ausam_ext import VSAM


class SAMHandler:
    def __init__(self, sam):
        self.sam = sam
        self.batches = []  # of this step

    def attach(self, engine):
        if engine.amp:
            raise TypeError("SAMHandler: expected amp=False: it does not scale the loss of the second pass")
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine):
        output = engine.state.output
        self.batches.append((output[CommonKeys.IMAGE], output[CommonKeys.LABEL]))
        done = engine.state.iteration % engine.state.epoch_length
        if done and done % engine.accumulation_steps:
            return  # the step comes with a later batch
        batches, self.batches = self.batches, []
        if isinstance(self.sam, VSAM) and not self.sam.decide():
            self.sam.reuse_()
            return
        with self.sam.perturbed():
            for image, label in batches:
                loss = engine.loss_function(engine.inferer(image, engine.network), label).mean()
                (loss / engine.accumulation_steps).backward()


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


def make_trainer(model, sam, data, epochs=15, batch_size=8, **options):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(data), batch_size=batch_size),
        network=model,
        optimizer=optimizer,
        loss_function=DiceLoss(sigmoid=True),
        train_handlers=[SAMHandler(sam), LrScheduleHandler(schedule, print_lr=False)],
        **options,
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    model = make_model()
    vsam = VSAM(model, rho=0.05, warmup_steps=20)
    losses = []
    trainer = make_trainer(model, vsam, make_data())
    trainer.add_event_handler(
        IterationEvents.LOSS_COMPLETED,
        lambda engine: losses.append(engine.state.output[CommonKeys.LOSS].item()),
    )
    trainer.run()
    print(f"loss {losses[0]:.3f} in the first iteration, {losses[-1]:.3f} in the last")
