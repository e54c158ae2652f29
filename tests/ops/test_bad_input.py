"""Every argument of every function: the right exception, name and value in the message, nothing changed."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers import assert_same_state, same_bits
from ops.bad_values import CASES, META, good

from ausam_ext import ops

ALL = [(name, *case) for name, cases in CASES.items() for case in cases]


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value] if value.device.type == "cpu" and value.layout == torch.strided else []
    return [t for v in value for t in tensors(v)] if isinstance(value, list) else []


@pytest.mark.parametrize(("name", "argument", "value", "error", "shown"), ALL)
def test_refused(backend, name, argument, value, error, shown):
    arguments = good(name)
    if name == "subset_sample" and argument == "scores":
        arguments.pop("noise")  # refused also, and before, noise would be drawn for it
    arguments[argument] = value
    given = [t for v in arguments.values() for t in tensors(v)]
    before = [t.clone() for t in given]
    random_state = torch.get_rng_state()
    if error is IndexError and backend.startswith("cuda"):
        getattr(ops, name)(**arguments)  # skipped on CUDA, where to raise would be to synchronise
        return
    with pytest.raises(error) as caught:
        getattr(ops, name)(**arguments)
    message = str(caught.value)
    assert type(caught.value) is error
    partners = {"params", "grads", "backups", "psf"} if isinstance(value, (list, tuple, str)) else set()
    assert any(message.startswith(a) for a in {argument, *partners}), message
    assert shown in message, message
    assert all(same_bits(t, b) for t, b in zip(given, before, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("name", ["perturb_", "restore_", "psf_capture_", "psf_reuse_"])
def test_lists_on_two_kinds_of_device_are_refused(name):
    """A kernel takes only pointers of its own kind."""
    arguments = good(name)
    lists = [argument for argument, value in arguments.items() if isinstance(value, list)]
    before = {argument: [t.clone() for t in arguments[argument]] for argument in lists}
    for argument in lists:
        arguments[argument] = [*arguments[argument], torch.empty(3, device=META)]
    first = next(iter(arguments))
    with pytest.raises(ValueError, match=rf"^{first}\[2\]: .*kind of {first}\[0\], cpu, got meta"):
        getattr(ops, name)(**arguments)
    assert all(same_bits(t, b) for a in lists for t, b in zip(arguments[a], before[a], strict=False))


@pytest.mark.parametrize("name", CASES)
def test_every_argument_is_in_the_table(name):
    import inspect

    tried = {argument for argument, *_ in CASES[name]}
    assert tried == set(inspect.signature(getattr(ops, name)).parameters)


@pytest.mark.parametrize("name", CASES)
def test_the_good_arguments_are_accepted(backend, name):
    getattr(ops, name)(**good(name))


@pytest.mark.parametrize("name", ["subset_sample", "adlp_sample"])
def test_a_refused_call_draws_nothing(backend, name):
    arguments = good(name)
    arguments["noise"] = None
    arguments["k"] = 99
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    with pytest.raises(ValueError, match="k: "):
        getattr(ops, name)(**arguments, generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("name", CASES)
def test_kernels_called_past_the_python_functions_are_safe(name):
    """torch.ops.ausam_ext.<name> is public too: wrong lengths must not reach memory."""
    short = good(name)
    short.pop("generator", None)
    number = {"sliced_variance": "slices", "subset_sample": "k", "adlp_sample": "k", "permute": "n"}
    argument = number.get(name)
    if argument:
        short[argument] = 2**62 + 1
    else:
        argument = list(short)[1]
        value = short[argument]
        short[argument] = value[:1] if isinstance(value, list) else value[:2]
    if name == "psf_reuse_":
        short["scale"] = torch.tensor(0.5)
    with pytest.raises((RuntimeError, ValueError)):
        getattr(torch.ops.ausam_ext, name)(**short)


@pytest.mark.parametrize("name", ["adlp_update_", "adlp_sample"])
@pytest.mark.parametrize("tried", [torch.zeros(2, dtype=torch.uint8), torch.zeros(10, dtype=torch.bool)])
def test_kernels_called_past_the_python_functions_check_what_is_optional(name, tried):
    with pytest.raises((RuntimeError, ValueError, TypeError), match="tried: "):
        getattr(torch.ops.ausam_ext, name)(**good(name), tried=tried)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("subset_sample", "k"),
        ("subset_sample", "s_min"),
        ("adlp_sample", "s_max"),
        ("sliced_variance", "slices"),
        ("permute", "n"),
        ("perturb_", "rho"),
        ("psf_capture_", "norm_last"),
        ("psf_reuse_", "scale"),
    ],
)
def test_numpy_scalars_are_numbers(backend, name, argument):
    arguments = good(name)
    plain = {"s_min": 0.25, "rho": 0.25}.get(argument, arguments[argument])
    results = []
    for value in (plain, np.int32(plain) if isinstance(plain, int) else np.float32(plain)):
        own = deepcopy(arguments)
        results.append([getattr(ops, name)(**{**own, argument: value}), own])
    assert_same_state(*results)
