"""Inputs and comparisons that several test modules share."""

from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TABLE = (torch.float32, torch.float64)


def exponential(*shape, seed=0):
    return torch.empty(shape).exponential_(generator=torch.Generator().manual_seed(seed))


def bits(t):
    """The memory of a tensor as integers, so that -0 and NaN compare too."""
    return t.detach().contiguous().view(-1).view(torch.uint8)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def assert_same_state(a, b, path="state"):
    """Nested containers whose tensors have the same bits."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and same_bits(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same_state(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def assert_error_at_most_twice(result, plain, exact):
    """`result` errs at most twice as much as plain PyTorch in the same dtype does, against a more exact value
    (one rounding of that to the result's dtype is always allowed)."""
    exact = exact.double()
    rounding = exact.abs().max() * torch.finfo(result.dtype).eps / 2
    error = (result.double() - exact).abs().max()
    allowed = 2 * max((plain.double() - exact).abs().max(), rounding)
    assert error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}"


def tensor_list(dtype, seed=0):
    """Odd sizes on purpose: primes, 0-d, empty, more than one chunk, transposed, strided, channels last."""
    g = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    return [
        make(7, 13),
        make(),
        make(0, 3),
        make(1),
        make(40009),
        make(11, 17).t(),
        make(2, 3, 5, 4).to(memory_format=torch.channels_last),
        make(9, 10)[:, ::3],
        make(16384),
    ]


def like(tensors, seed):
    """Random values of the same shapes and dtypes, in other layouts for some."""
    g = torch.Generator().manual_seed(seed)
    out = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype) for t in tensors]
    out[5] = out[5].t().contiguous().t()
    return out


def assert_unchanged(work, default):
    """`work` makes what it is given on the CPU and in float32; its result is a state."""
    expected = work()
    default()
    assert_same_state(work(), expected)
