"""Random permutations whose values are computed one by one, so that none is ever stored."""

import torch
from torch import Tensor

_ROUNDS = 8
_MIN_BITS = 6  # too few bits a half, and even many rounds favour some permutations
_WORD = 0xFFFFFFFF
_CPU_CHUNK = 1 << 15  # stays in the cache, and its hundred operations are too short to share among threads


def permute(position: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Values at ``position`` of a permutation of ``0 ... n - 1``, which the state of ``generator`` picks.

    An unbalanced Feistel network is a bijection of ``0 ... 2^b - 1``, with the least ``b``, from 6 on, for
    which ``2^b >= n``. Where it leaves the ``n`` numbers it is applied again, until it is back among them
    (cycle walking): for ``n > 32`` less than twice on average. Integer operations only: the same values on
    every device.

    Args:
        position: 1-d, int64, from 0 to ``n - 1``.
        n: length of the permutation, at most ``2^62``.
        generator: of the CPU; gives the keys.

    Returns:
        Like ``position``. Needs memory in proportion to it, whatever ``n`` is.
    """
    keys = torch.randint(_WORD + 1, (_ROUNDS,), generator=generator).tolist()
    bits = max(_MIN_BITS, (n - 1).bit_length())
    value = _feistel(position, bits, keys)
    outside = (value >= n).nonzero().squeeze(1)
    while outside.numel():
        again = _feistel(value[outside], bits, keys)
        value[outside] = again
        outside = outside[again >= n]
    return value


def _feistel(x: Tensor, bits: int, keys: list[int]) -> Tensor:
    parts = x.split(_CPU_CHUNK) if x.device.type == "cpu" else (x,)
    return torch.cat([_rounds(part, bits, keys) for part in parts])


def _rounds(x: Tensor, bits: int, keys: list[int]) -> Tensor:
    """Rounds that each change one half by a function of the other, which the next round can undo."""
    low = bits - bits // 2
    halves = [x & ((1 << low) - 1), x >> low]
    masks = [(1 << low) - 1, (1 << bits // 2) - 1]
    for i, key in enumerate(keys):
        halves[i % 2] ^= _hash(halves[1 - i % 2], key) & masks[i % 2]
    return halves[0] | (halves[1] << low)


def _hash(x: Tensor, key: int) -> Tensor:
    """Mixes 32 bits, in 64 of which no product overflows (a multiply-xorshift hash found by search)."""
    x = x ^ key
    x ^= x >> 16
    x *= 0x21F0AAAD
    x &= _WORD
    x ^= x >> 15
    x *= 0x735A2D97
    x &= _WORD
    x ^= x >> 15
    return x
