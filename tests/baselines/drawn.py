"""The tensors that ESAM perturbs: which were drawn, and how a test draws others."""

import torch


def drawn(sam):
    return sam.state_dict()["drawn"].tolist()


def draw(sam, which):
    """Makes ``which`` the tensors that the next step perturbs."""
    sam.load_state_dict({**sam.state_dict(), "drawn": torch.tensor(which)})
