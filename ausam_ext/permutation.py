"""Random permutations whose values are computed one by one, so that none is ever stored.

A Feistel network whose halves are ``k`` bits, changed by exclusive or, and a number below ``ceil(n / 2^k)``,
changed by addition modulo that: a bijection of little more than ``n`` numbers (from 64 on). If it leaves
the ``n`` it is applied again, until it is back among them (cycle walking), which for ``n > 64`` less than an
eighth need. Integer operations only: the same values on every device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

KEYS = 8  # of 32 bits: one for each round
_MIN_BITS = 6  # too few bits a half, and even many rounds favour some permutations
_WORD = 0xFFFFFFFF
_CPU_CHUNK = 1 << 15  # stays in the cache, and its hundred operations are too short to share among threads


def draw_keys(generator: torch.Generator) -> list[int]:
    """What picks a permutation, from a generator of the CPU."""
    return torch.randint(_WORD + 1, (KEYS,), dtype=torch.int64, device="cpu", generator=generator).tolist()


def permute(position: Tensor, n: int, keys: Sequence[int]) -> Tensor:
    low_bits = max(_MIN_BITS, (n - 1).bit_length()) // 2
    tops = max(1 << (_MIN_BITS - _MIN_BITS // 2), -(-n // (1 << low_bits)))
    inside = (position >= 0) & (position < n)
    value = _feistel(position.where(inside, 0), low_bits, tops, keys)
    if tops << low_bits != n:
        outside = (value >= n).nonzero().squeeze(1)
        while outside.numel():
            again = _feistel(value[outside], low_bits, tops, keys)
            value[outside] = again
            outside = outside[again >= n]
    return value.where(inside, -1)


def _feistel(x: Tensor, low_bits: int, tops: int, keys: Sequence[int]) -> Tensor:
    parts = x.split(_CPU_CHUNK) if x.device.type == "cpu" else (x,)
    return torch.cat([_rounds(part, low_bits, tops, keys) for part in parts])


def _rounds(x: Tensor, low_bits: int, tops: int, keys: Sequence[int]) -> Tensor:
    """Rounds that each change one half by a function of the other, which the next round can undo."""
    mask = (1 << low_bits) - 1
    low, top = x & mask, x >> low_bits
    for key_of_top, key_of_low in zip(keys[::2], keys[1::2], strict=True):
        low ^= _hash(top, key_of_top) & mask
        top += (_hash(low, key_of_low) * tops) >> 32  # below tops
        top -= (top >= tops) * tops
    return low | (top << low_bits)


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
