"""Ultralytics YOLO: SAM or vSAM in its trainer, here of images; for detection, extend `DetectionTrainer`.

The bridge is `SAMTrainer`, for `YOLO(...).train(trainer=SAMTrainer)`. It keeps the batches of a step, all of
them if it accumulates, and takes them once more at the perturbed weights, before the trainer unscales and
clips the gradient. The moving average sees only the weights after the step.
"""

import os
import tempfile
from pathlib import Path

os.environ |= {"YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}  # before it is imported

import torch
import torchvision  # noqa: F401  (Ultralytics imports it late, and does not run without it)
from PIL import Image
from sklearn.datasets import load_digits
from ultralytics import YOLO
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.utils import RANK
from ultralytics.utils.torch_utils import autocast

from ausam_ext import SAM, VSAM


class SAMTrainer(ClassificationTrainer):
    sam = None

    def make(self):
        return SAM(self.model, rho=0.05, scaler=self.scaler)

    def _build_train_pipeline(self):
        self.kept = []  # also when it begins again with smaller batches, as memory was short
        super()._build_train_pipeline()

    def preprocess_batch(self, batch):
        batch = super().preprocess_batch(batch)
        self.kept.append(batch)
        return batch

    def optimizer_step(self):
        self.sam = self.sam or self.make()
        kept, self.kept = self.kept, []
        if isinstance(self.sam, VSAM) and not self.sam.decide():
            self.sam.reuse_()
        else:
            with self.sam.perturbed():
                for batch in kept:
                    self.one_pass(batch)
        super().optimizer_step()

    def one_pass(self, batch):
        """What the trainer does with a batch, up to its gradient."""
        with autocast(torch.bfloat16 if self.args.amp == "bf16" else self.amp, device=self.device.type):
            loss = self.model(batch)[0].sum()
        if RANK != -1:
            loss = loss * self.world_size
        self.scaler.scale(loss).backward()


class VSAMTrainer(SAMTrainer):
    def make(self):
        return VSAM(self.model, rho=0.05, warmup_steps=20, scaler=self.scaler)


def write_digits(folder):
    """As images in one folder for each class."""
    images, labels = load_digits(return_X_y=True)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = Path(folder, "val" if i % 4 == 0 else "train", str(label))
        path.mkdir(parents=True, exist_ok=True)
        pixels = (image.reshape(8, 8) * 15.9).astype("uint8")
        Image.fromarray(pixels).convert("RGB").resize((32, 32)).save(path / f"{i}.png")


def train(trainer, data, project, **options):
    small = {"imgsz": 32, "batch": 32, "nbs": 64, "device": "cpu", "workers": 0, "amp": False, "plots": False}
    schedule = {"fraction": 0.5, "epochs": 3, "optimizer": "AdamW", "lr0": 0.003, "warmup_epochs": 1}
    augmentation = {"auto_augment": None, "erasing": 0.0, "fliplr": 0.0, "scale": 0.2}
    options = {**small, **schedule, **augmentation, **options}
    model = YOLO("yolo11n-cls.yaml")
    model.train(trainer=trainer, data=data, project=project, **options)
    return model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_digits(folder)
        for trainer in (SAMTrainer, VSAMTrainer):
            model = train(trainer, folder, project=folder + "/runs")
            print(f"{trainer.__name__}: accuracy {model.metrics.top1:.3f}")
