"""A training run that may be killed anywhere: AUSAM + vSAM with all that carries state from step to step."""

import io
import os
import signal
import threading
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ausam_ext import ADLP, VSAM, AUSAMBatchSampler

SAMPLES = 300


class Augmented(Dataset):
    """Adds noise from torch's generator; ``seeded`` by epoch and sample, as docs/checkpoints.md shows it."""

    def __init__(self, seeded):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(SAMPLES, 8, generator=generator)
        self.y = torch.randint(0, 3, (SAMPLES,), generator=generator)
        self.seeded, self.epoch = seeded, 0

    def __len__(self):
        return SAMPLES

    def __getitem__(self, i):
        if not self.seeded:
            return self.x[i] + 0.3 * torch.randn(8), self.y[i]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(hash((self.epoch, i)))
            return self.x[i] + 0.3 * torch.randn(8), self.y[i]


class Training:
    """``losses_scaled``: with a GradScaler whose scale doubles every 5 steps; step 8 overflows."""

    def __init__(self, optimizer="SGD", workers=0, seeded=False, losses_scaled=False, frozen=False):
        torch.manual_seed(0)
        self.train_set = Augmented(seeded)
        self.model = nn.Sequential(
            nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3)
        )
        if frozen:
            self.model[0].requires_grad_(False)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        options = {"lr": 0.1, "momentum": 0.9} if optimizer == "SGD" else {"lr": 0.01}
        self.optimizer = getattr(torch.optim, optimizer)(trained, **options)
        self.scaler = torch.amp.GradScaler("cpu", growth_interval=5, enabled=losses_scaled)
        self.adlp = ADLP(SAMPLES)
        self.batches = AUSAMBatchSampler(self.adlp, 32, alpha=0.5, warmup_epochs=4)
        self.loader = DataLoader(
            self.train_set,
            batch_sampler=self.batches,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,  # else as this process was started itself
            worker_init_fn=partial(end_if_orphaned, os.getpid()),
        )
        self.vsam = VSAM(
            self.model,
            rho=0.2,
            warmup_steps=3,
            window=10,
            slices=2,
            initial_samples=3,
            alpha=0.5,
            max_reuse=3,
            scaler=self.scaler,
        )
        self.done = 0

    def parts(self):
        names = ("model", "optimizer", "adlp", "batches", "vsam", "scaler")
        return {name: getattr(self, name) for name in names}

    def state(self):
        state = {name: part.state_dict() for name, part in self.parts().items()}
        return {**state, "rng": torch.get_rng_state(), "done": self.done}

    def load(self, state):
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        self.done = state["done"]

    def losses(self, x, y):
        loss = F.cross_entropy(self.model(x), y, reduction="none")
        overflow = self.scaler.is_enabled() and self.done == 8
        self.scaler.scale(loss.mean() * (float("inf") if overflow else 1.0)).backward()
        return loss

    def steps(self, at=lambda place: None):
        """Trains without end; yields after each step. ``at`` is told where it is."""
        for epoch in range(self.batches.epoch, 10**6):
            self.batches.set_epoch(epoch)
            self.train_set.epoch = epoch
            for index, (x, y) in self.batches.indexed(self.loader):
                at("step")
                loss = self.losses(x, y)
                if self.vsam.decide():
                    with self.vsam.perturbed():
                        loss_perturbed = self.losses(x, y)
                        at("perturbed")
                    self.adlp.update(index, loss, loss_perturbed, skip=self.vsam.overflow)
                else:
                    self.vsam.reuse_()
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad()
                self.done += 1
                yield


def end_if_orphaned(parent, worker):
    """torch's workers look whether they still have the parent that they have now: one that was killed before
    they began is not missed, and they would wait without end."""
    if os.getppid() != parent:
        os._exit(1)


def newest(directory):
    return max(directory.glob("*.pt"), key=lambda f: int(f.stem), default=None)


def save(state, directory, at):
    """A file of this name is complete, whenever the process ends."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    with open(directory / "incomplete", "wb") as f:
        f.write(data[: len(data) // 2])
        f.flush()
        at("writing")
        f.write(data[len(data) // 2 :])
        f.flush()
        os.fsync(f.fileno())
    at("replacing")
    os.replace(directory / "incomplete", directory / f"{state['done']}.pt")


def train(directory: Path, until: int, save_every: int, workers: int, kill=None, alive=None):
    """Goes on from the newest checkpoint until that many steps are done.

    ``kill = (step, place, seconds)``: SIGKILL comes that long after the run is first at ``place`` with at
    least ``step`` steps done. ``alive``: an open file, kept open as long as this process and its workers are.
    """
    torch.set_num_threads(1)
    training = Training(workers=workers, seeded=workers > 0)
    pending = [kill] if kill else []

    def at(place):
        if pending and training.done >= pending[0][0] and place == pending[0][1]:
            seconds = pending.pop()[2]
            if seconds:
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    if checkpoint := newest(directory):
        training.load(torch.load(checkpoint, weights_only=True))
    if training.done < until:
        for _ in training.steps(at):
            if training.done % save_every == 0 or training.done == until:
                save(training.state(), directory, at)
            if training.done == until:
                return
