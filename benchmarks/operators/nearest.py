"""PyTorch's nearest calls, on an operator's arguments."""

import torch
from torch import Tensor


def weights(scores: Tensor, s_min: float, s_max: float) -> Tensor:
    """Eq. 8's, of scores that are all finite and not all equal."""
    low, high = scores.aminmax(dim=-1, keepdim=True)
    return (scores - low).div_(high - low).mul_(s_max - s_min).add_(s_min)


def topk(scores: Tensor, k: int, *, noise: Tensor, **bounds: float) -> Tensor:
    """The same choice, of such scores and if no two keys are equal: as fast as PyTorch's calls do it.

    Unlike the reference it waits for the device, to see how many there are.
    """
    keys = weights(scores, **bounds).div_(noise)
    threshold = keys.topk(k, sorted=False).values.amin(-1, keepdim=True)
    return (keys >= threshold).nonzero()[:, -1].view(*scores.shape[:-1], k)


def multinomial(scores: Tensor, k: int, **bounds: float) -> Tensor:
    """The same choice with its draw."""
    return torch.multinomial(weights(scores, **bounds), k)


def randperm(position: Tensor, n: int, keys: list[int]) -> Tensor:
    """Another one, which is stored."""
    return torch.randperm(n, device=position.device)


def draw(scores: Tensor, k: int, **_: float) -> Tensor:
    """Only the noise, which the operator and ``torch.multinomial`` both draw."""
    return torch.empty_like(scores).exponential_()
