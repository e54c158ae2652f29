"""AUSAM in the Hugging Face Trainer, and what a resumed run goes on with."""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state
from torch import nn
from transformers import TrainingArguments

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler
from ausam_ext.integrations.transformers import SAMTrainer

ROWS, STEP = 48, 16


class Net(nn.Module):
    """Also keeps which samples it saw: the first feature of each is its number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.seen = nn.Linear(3, 4), []

    def forward(self, x, labels=None):
        if self.training:
            self.seen.append(x[:, 0].long().tolist())
        logits = self.linear(x / torch.tensor([ROWS, 1, 1]))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def rows():
    g = torch.Generator().manual_seed(0)
    x = torch.cat([torch.arange(ROWS).view(-1, 1), torch.randn(ROWS, 2, generator=g)], 1)
    y = torch.randint(4, (ROWS,), generator=g)
    return [{"x": v, "labels": y, "unused": "text"} for v, y in zip(x, y, strict=True)]


def losses(outputs, labels):
    return F.cross_entropy(outputs["logits"], labels, reduction="none")


def sampler(size):
    return AUSAMBatchSampler(ADLP(ROWS), size, warmup_epochs=2, seed=5)


def make_vsam(model):
    return VSAM(model, 0.1, warmup_steps=2, window=4, slices=2, initial_samples=2, seed=3)


def trainer(folder, make, accumulate=1, per_sample=losses, **options):
    size = STEP // accumulate
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=3,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **{"save_strategy": "no", **options},
    )
    return SAMTrainer(
        Net(), arguments, train_dataset=rows(), make=make, batches=sampler(size), losses=per_sample
    )


def by_hand(make, accumulate=1):
    """Steps of so many micro-batches, in the sampler's order."""
    model, data, batches = Net(), rows(), sampler(STEP // accumulate)
    sam, optimizer = make(model), torch.optim.SGD(model.parameters(), 0.1)
    for epoch in range(3):
        batches.set_epoch(epoch)
        planned = list(batches)
        for start in range(0, len(planned), accumulate):
            parts = planned[start : start + accumulate]

            def one_pass(parts=parts):
                found = []
                for part in parts:
                    x, y = (torch.stack([data[i][name] for i in part]) for name in ("x", "labels"))
                    found.append(losses(model(x, y), y))
                    (found[-1].mean() / len(parts)).backward()
                return torch.cat(found).detach()

            loss = one_pass()
            if not isinstance(sam, VSAM) or sam.decide():
                with sam.perturbed():
                    perturbed = one_pass()
                batches.adlp.update(torch.tensor(list(chain(*parts))), loss, perturbed)
            else:
                sam.reuse_()
            optimizer.step()
            optimizer.zero_grad()
    return model, batches.adlp


@pytest.mark.parametrize("make", [lambda m: SAM(m, 0.1), make_vsam], ids=["SAM", "vSAM"])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_trains_on_what_the_sampler_chooses_as_a_loop_by_hand_does(tmp_path, make, accumulate):
    made = trainer(tmp_path, make, accumulate)
    made.train()
    model, adlp = by_hand(make, accumulate)
    assert made.model.seen == model.seen
    assert made.batches.adlp.count.sum() < 2 * ROWS + 1  # a whole epoch, and two of half
    torch.testing.assert_close(made.model.linear.state_dict(), model.linear.state_dict())
    torch.testing.assert_close(made.batches.adlp.total, adlp.total)
    assert torch.equal(made.batches.adlp.count, adlp.count)


@pytest.mark.parametrize("step", [3, 4])
def test_a_resumed_run_is_bit_identical(tmp_path, step):
    """From the end of an epoch and from within one, in a new trainer."""
    whole = trainer(tmp_path / "whole", make_vsam)
    whole.train()
    first = trainer(tmp_path / "cut", make_vsam, save_strategy="steps", save_steps=step, save_total_limit=9)
    first.train()
    second = trainer(tmp_path / "cut", make_vsam)
    second.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{step}"))
    assert len(second.model.seen) < len(whole.model.seen)
    assert_same_state(second.model.state_dict(), whole.model.state_dict())
    assert_same_state(second.sam.state_dict(), whole.sam.state_dict())
    assert_same_state(second.batches.adlp.state_dict(), whole.batches.adlp.state_dict())


def test_evaluates_whole_batches_and_leaves_the_table(tmp_path):
    made = trainer(tmp_path, lambda m: SAM(m))
    made.eval_dataset = rows()
    found = made.evaluate()
    data = rows()
    x, y = (torch.stack([row[name] for row in data]) for name in ("x", "labels"))
    assert found["eval_loss"] == pytest.approx(losses(Net()(x, y), y).mean().item(), rel=1e-5)
    assert made.batches.adlp.count.sum() == 0


def test_bad_input(tmp_path):
    with pytest.raises(TypeError, match=r"expected both, for AUSAM, or none of them, got only batches"):
        trainer(tmp_path, SAM, per_sample=None)
    with pytest.raises(TypeError, match="make: expected it to return a SAM or VSAM, got None"):
        trainer(tmp_path, lambda m: None).train()
    with pytest.raises(ValueError, match="losses must be per sample"):
        trainer(tmp_path, SAM, per_sample=lambda outputs, labels: outputs["loss"]).train()
    arguments = TrainingArguments(tmp_path, per_device_train_batch_size=4, use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=r"batches of args.train_batch_size = 4, got 8"):
        SAMTrainer(Net(), arguments, train_dataset=rows(), make=SAM, batches=sampler(8), losses=losses)
    made = trainer(tmp_path, SAM)
    made.accelerator.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(TypeError, match=r"make: with fp16=True expected a SAM that knows the scaler"):
        made.train()
