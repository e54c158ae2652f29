"""The trainer against one that takes SAM's step by its formula."""

import copy

import pytest
import torch

RHO = 0.05


@pytest.fixture
def train(example, tmp_path, monkeypatch):
    """Trains a class of trainers on a few images, always from the same weights; returns the trainer."""
    data = tmp_path / "digits"
    example.write_digits(data)

    def run(kind, **options):
        kept = []

        class Double(kind):
            """In float64: what BatchNorm makes of rounding errors in float32 is larger than SAM's radius."""

            def setup_model(self):
                kept.append(self)
                checkpoint = super().setup_model()
                self.model.double()
                return checkpoint

            def preprocess_batch(self, batch):
                batch = super().preprocess_batch(batch)
                batch["img"] = batch["img"].double()
                return batch

        options = {
            "epochs": 1,
            "warmup_epochs": 0,
            "fraction": 0.095,  # 128 images
            "val": False,
            "optimizer": "SGD",
            "momentum": 0.9,
            **options,
        }
        example.train(Double, str(data), str(tmp_path / "runs"), **options)
        return kept[0]

    return run


@pytest.fixture
def by_hand(example):
    class ByHand(example.ClassificationTrainer):
        seen = ()

        def preprocess_batch(self, batch):
            self.seen = (*self.seen, super().preprocess_batch(batch))
            return self.seen[-1]

        def optimizer_step(self):
            weights = [p for p in self.model.parameters() if p.grad is not None]
            norm = torch.stack([p.grad.norm() for p in weights]).norm()
            before = [p.detach().clone() for p in weights]
            statistics = copy.deepcopy(dict(self.model.named_buffers()))
            with torch.no_grad():
                for p in weights:
                    p += RHO * p.grad / norm
                    p.grad = None
            for batch in self.seen:
                self.model(batch)[0].sum().backward()
            with torch.no_grad():
                for p, old in zip(weights, before, strict=True):
                    p.copy_(old)
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(statistics[name])
            self.seen = ()
            super().optimizer_step()

    return ByHand


def assert_close(trainer, other):
    for a, b in ((trainer.model, other.model), (trainer.ema.ema, other.ema.ema)):
        torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("nominal", [32, 64])
def test_takes_every_accumulated_batch_again(example, train, by_hand, nominal):
    assert_close(train(example.SAMTrainer, nbs=nominal), train(by_hand, nbs=nominal))


def test_without_a_radius_it_is_the_trainer_that_it_extends(example, train):
    class Radius0(example.SAMTrainer):
        def make(self):
            return example.SAM(self.model, rho=0.0, scaler=self.scaler)

    assert_close(train(Radius0), train(example.ClassificationTrainer))


def test_vsam_takes_both_kinds_of_step(example, train):
    sampled = []

    class Watched(example.SAMTrainer):
        def make(self):
            return example.VSAM(self.model, rho=RHO, warmup_steps=3, scaler=self.scaler)

        def optimizer_step(self):
            super().optimizer_step()
            sampled.append(self.sam.sampled)

    trainer = train(Watched, nbs=32, epochs=3)
    assert sampled[:3] == [True] * 3 and False in sampled
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_begins_again_with_smaller_batches_when_memory_is_short(example, train):
    passes, steps = [], []

    class Short(example.SAMTrainer):
        def preprocess_batch(self, batch):
            batch = super().preprocess_batch(batch)
            passes.append(len(batch["cls"]))
            if passes == [32]:
                raise RuntimeError("out of memory")
            return batch

        def optimizer_step(self):
            steps.append([len(batch["cls"]) for batch in self.kept])
            super().optimizer_step()

    train(Short, nbs=32)
    assert steps[0][0] == 16 and [n for step in steps for n in step] == passes[1 : 1 + sum(map(len, steps))]
