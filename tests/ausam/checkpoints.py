"""Ways to keep a training run and to bring it back."""

import copy
import itertools

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict


def for_dcp(training):
    """Objects as they are, but for the optimizer: a fresh one's state has nothing to load into."""
    model, optimizer = get_state_dict(training.model, training.optimizer)
    objects = {name: getattr(training, name) for name in ("adlp", "batches", "vsam", "scaler")}
    return {
        **objects,
        "model": model,
        "optimizer": optimizer,
        "rng": torch.get_rng_state(),
        "done": training.done,
    }


def save_dcp(training, path):
    dcp.save(for_dcp(training), checkpoint_id=path, no_dist=True)


def load_dcp(training, path):
    state = for_dcp(training)
    dcp.load(state, checkpoint_id=path, no_dist=True)
    model, optimizer = state["model"], state["optimizer"]
    set_state_dict(training.model, training.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    torch.set_rng_state(state["rng"])
    training.done = state["done"]


def save_file(training, path):
    torch.save(training.state(), path)


def load_file(training, path):
    training.load(torch.load(path, weights_only=True))


def advance(training, until):
    """States after each step."""
    return [
        copy.deepcopy(training.state()) for _ in itertools.islice(training.steps(), until - training.done)
    ]
