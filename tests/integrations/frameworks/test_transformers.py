"""The Hugging Face Trainer: `SAMTrainer` against a loop by hand, and what would not be SAM."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from helpers import same_bits
from integrations.loops import METHODS
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from ausam_ext import SAM, VSAM
from ausam_ext.integrations import SAMOptimizer
from ausam_ext.integrations.transformers import SAMTrainer

ROWS, STEP, LR = 64, 16, 0.1


def columns():
    g = torch.Generator().manual_seed(0)
    words = torch.randint(5, 50, (ROWS, 12), generator=g)
    return {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words.sum(1) % 3}


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    return BertForSequenceClassification(config)


def mean_over_the_step(outputs, labels, num_items_in_batch):
    """The loss of a micro-batch, as a part of that of the whole step."""
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def train(trainer, folder, accumulate=1, clip=0.0, wrap=None):
    """Trains in the order of the rows, in steps of as many rows whatever the micro-batches are."""
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=STEP // accumulate,
        gradient_accumulation_steps=accumulate,
        train_sampling_strategy="sequential",
        num_train_epochs=2,
        optim="sgd",
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=clip,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
    )
    model = bert()
    made = trainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict({name: rows.tolist() for name, rows in columns().items()}),
        compute_loss_func=mean_over_the_step,
        optimizers=(None if wrap is None else wrap(model), None),
    )
    made.train()
    return model


def by_hand(make, clip=0.0):
    model, rows = bert(), columns()
    optimizer, sam = torch.optim.SGD(model.parameters(), lr=LR), make(model)
    labels = rows.pop("labels")
    for _ in range(2):
        for start in range(0, ROWS, STEP):
            part = slice(start, start + STEP)

            def one_pass(part=part):
                logits = model(**{name: values[part] for name, values in rows.items()}).logits
                F.cross_entropy(logits, labels[part]).backward()

            one_pass()
            if not isinstance(sam, VSAM) or sam.decide():
                with sam.perturbed():
                    one_pass()
            else:
                sam.reuse_()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return model


def assert_close(model, other):
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()))


def assert_untrained(model):
    for p, q in zip(model.parameters(), bert().parameters(), strict=True):
        assert same_bits(p, q)


def test_the_documented_examples(example, accuracy):
    space = example("trainer")
    assert accuracy(space["trainer"].model.net, space["train_set"]) > 0.9
    assert space["trainer"].sam.controller.state_dict()["count"] > 60  # and its own rate after the warm-up
    space = example("trainer", "trainer_ausam")
    assert accuracy(space["trainer"].model.net, space["train_set"]) > 0.9
    n = len(space["train_set"])
    assert space["batches"].adlp.count.sum() == n + 4 * (n // 16 * 8 + 2)  # the last batch has five


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("accumulate", "clip"), [(1, 0.0), (4, 0.0), (4, 0.05)])
def test_micro_batches_make_the_step_of_the_large_batch(tmp_path, method, accumulate, clip):
    model = train(partial(SAMTrainer, make=METHODS[method]), tmp_path, accumulate, clip)
    assert_close(model, by_hand(METHODS[method], clip))
    with pytest.raises(AssertionError):
        assert_close(model, by_hand(lambda m: SAM(m, 0.0), clip))


class Naive(Trainer):
    """Both passes of each micro-batch, as one writes it first."""

    sam = None

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.sam = self.sam or METHODS[self.method](model)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.method == "SAM" or self.sam.decide():
            with self.sam.perturbed():
                super().training_step(model, inputs, num_items_in_batch)
        else:
            self.sam.reuse_()
        return loss


class NaiveClosure(Naive):
    """The same with a closure; the Trainer clears the gradients after each step."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.sam = self.sam or METHODS[self.method](model)
        one_pass = super(Naive, self).training_step
        return self.sam.backward(lambda: one_pass(model, inputs, num_items_in_batch))[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", [Naive, NaiveClosure])
def test_both_passes_within_each_micro_batch(tmp_path, method, form):
    """Are right if it is the whole step, and would leave only the last one's gradient if it is not."""
    form = type(form.__name__, (form,), {"method": method})
    assert_close(train(form, tmp_path), by_hand(METHODS[method]))
    with pytest.raises(RuntimeError, match=r"perturbed\(\)"):
        train(form, tmp_path, accumulate=4)


def test_the_adapter_in_place_of_the_optimizer(tmp_path):
    """The Trainer gives step() no closure: an error that says what to write, before anything is trained."""
    kept = []

    def wrap(model):
        kept.append(model)
        return SAMOptimizer(torch.optim.SGD(model.parameters(), lr=LR), SAM(model))

    with pytest.raises(
        RuntimeError, match=r"step\(\): SAM runs the closure twice.*`with sam.perturbed\(\):`"
    ):
        train(Trainer, tmp_path, wrap=wrap)
    assert_untrained(kept[0])
