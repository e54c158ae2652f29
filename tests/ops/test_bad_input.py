"""Every argument of every function: the right exception, name and value in the message, nothing changed."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers import assert_same_state, exponential, same_bits

from ausam_ext import ops

NAN, INF = float("nan"), float("inf")
META = torch.device("meta")
INT, LONG, F32, F64 = torch.int32, torch.int64, torch.float32, torch.float64


def good(name):
    table = {"total": torch.rand(10), "count": torch.ones(10, dtype=INT)}
    index = torch.tensor([1, 2, 3, 9])
    params = [torch.randn(3, 2), torch.randn(4)]
    grads, third = [torch.randn_like(p) for p in params], [torch.randn_like(p) for p in params]
    weights = {"s_min": 0.1, "s_max": 1.0}
    return {
        "dlp": {"loss": torch.rand(4), "loss_perturbed": torch.rand(4)},
        "adlp_update_": {**table, "index": index, "loss": torch.rand(4), "loss_perturbed": torch.rand(4)},
        "subset_sample": {"scores": torch.rand(2, 4), "k": 2, **weights, "noise": exponential(2, 4)},
        "adlp_sample": {**table, "index": index, "k": 2, **weights, "noise": exponential(4)},
        "subset_weights": {
            "scores": torch.rand(3, 4),
            "positions": torch.tensor([[0, 3], [1, 2], [0, 1]]),
            "noise": exponential(3, 4),
            **weights,
        },
        "sliced_variance": {"norms": torch.rand(10), "slices": 5},
        "permute": {"position": torch.tensor([3, 0, 3]), "n": 4, "keys": list(range(8))},
        "perturb_": {
            "params": params,
            "grads": grads,
            "backups": third,
            "rho": 0.1,
            "adaptive": False,
            "maximize": False,
            "norm": None,
        },
        "restore_": {"params": params, "backups": grads},
        "psf_capture_": {"psf": params, "grads": grads, "norm_last": 1},
        "psf_reuse_": {"grads": params, "psf": grads, "scale": 0.5, "limit": None},
    }[name]


def sparse(*shape):
    return torch.ones(shape).to_sparse()


def floats(argument, shape, also=()):
    """What every floating-point tensor argument refuses."""
    return [
        (argument, torch.ones(shape, dtype=LONG), TypeError, "torch.int64"),
        (argument, torch.ones(shape, dtype=torch.complex64), TypeError, "torch.complex64"),
        (argument, [1.0, 2.0], TypeError, "[1.0, 2.0]"),
        (argument, None, TypeError, "None"),
        (argument, sparse(*shape), TypeError, "sparse"),
        *also,
    ]


def numbers(argument, *wrong):
    return [
        *((argument, value, ValueError, str(value)) for value in (*wrong, NAN, INF, -INF)),
        (argument, "1", TypeError, "'1'"),
    ]


def integers(argument, *wrong):
    return [
        *((argument, value, ValueError, str(value)) for value in wrong),
        (argument, 1.5, TypeError, "1.5"),
    ]


TABLE = [
    *floats("total", (10,), [("total", torch.rand(10).half(), TypeError, "torch.float16")]),
    ("total", torch.rand(2, 5), ValueError, "(2, 5)"),
    ("count", torch.ones(10, dtype=LONG), TypeError, "torch.int64"),
    ("count", torch.ones(9, dtype=INT), ValueError, "(9,)"),
    ("count", torch.ones(10, dtype=INT, device=META), ValueError, "meta"),
    ("index", torch.rand(4), TypeError, "torch.float32"),
    ("index", [1, 2, 3, 9], TypeError, "[1, 2, 3, 9]"),
    ("index", torch.tensor([1, 2, 3, 10]), IndexError, "10"),
    ("index", torch.tensor([1, -7, 3, 9]), IndexError, "-7"),
    ("index", torch.tensor([1, 2, 3, 2**31 - 1], dtype=INT), IndexError, "2147483647"),
    ("index", torch.tensor([1, 2, 3, 9], device=META), ValueError, "meta"),
    ("invalid", torch.zeros((), dtype=LONG), TypeError, "torch.int64"),
    ("invalid", torch.zeros(1, dtype=INT), ValueError, "(1,)"),
    ("invalid", torch.zeros((), dtype=INT, device=META), ValueError, "meta"),
    ("invalid", 0, TypeError, "0"),
    ("tried", torch.zeros(10, dtype=torch.bool), TypeError, "torch.bool"),
    ("tried", torch.zeros(10, dtype=INT), TypeError, "torch.int32"),
    ("tried", torch.zeros(9, dtype=torch.uint8), ValueError, "(9,)"),
    ("tried", torch.zeros(1, 10, dtype=torch.uint8), ValueError, "(1, 10)"),
    ("tried", torch.zeros(10, dtype=torch.uint8, device=META), ValueError, "meta"),
    ("tried", [0] * 10, TypeError, "[0, 0"),
]
RACE = [
    *numbers("s_min", 0, 0.0, -0.1),
    *numbers("s_max", 0.05, -1),
    ("noise", exponential(2, 4).double(), TypeError, "torch.float64"),
    ("noise", exponential(8), ValueError, "(8,)"),
    ("noise", torch.rand(2, 4, device=META), ValueError, ""),
    ("noise", 1.0, TypeError, "1.0"),
]
SAMPLE = [
    *integers("k", 0, -1, 5),
    *RACE,
    ("generator", torch.Generator(), ValueError, "Generator"),  # beside noise
    ("generator", 17, TypeError, "17"),
]


def tensor_lists(first, other):
    """What two lists that go together refuse; `first` holds shapes (3, 2) and (4)."""
    return [
        (first, torch.rand(3, 2), TypeError, "tensor("),
        (first, None, TypeError, "None"),
        (first, [torch.randn(3, 2), None], TypeError, "None"),
        (first, [torch.randn(3, 2)], ValueError, "1"),
        (other, [torch.randn(3, 2)], ValueError, "1"),
        (other, [torch.randn(3, 2), torch.randn(5)], ValueError, "(5,)"),
        (other, [torch.randn(2, 3), torch.randn(4)], ValueError, "(2, 3)"),
        (other, [torch.randn(3, 2), torch.randn(4).double()], TypeError, "torch.float64"),
        (other, [torch.randn(3, 2), torch.randn(4, device=META)], ValueError, "meta"),
        (other, [sparse(3, 2), torch.randn(4)], TypeError, "sparse"),
        (other, "ab", TypeError, "'ab'"),
    ]


def floating_lists(first, other):
    return [
        *tensor_lists(first, other),
        (first, [torch.ones(3, 2, dtype=LONG), torch.randn(4)], TypeError, "torch.int64"),
    ]


CASES = {
    "dlp": [
        *floats("loss", (4,)),
        *floats("loss_perturbed", (4,)),
        ("loss_perturbed", torch.rand(3), ValueError, "(3,)"),
        ("loss_perturbed", torch.rand(4, 1), ValueError, "(4, 1)"),
        ("loss_perturbed", torch.rand(4).double(), TypeError, "torch.float64"),
        ("loss_perturbed", torch.rand(4, device=META), ValueError, "meta"),
    ],
    "adlp_update_": [
        *TABLE,
        ("index", torch.tensor([[1, 2, 3, 9]]), ValueError, "(1, 4)"),
        *floats("loss", (4,)),
        *floats("loss_perturbed", (4,)),
        ("loss", torch.tensor(0.5), ValueError, "()"),  # a mean
        ("loss", torch.rand(5), ValueError, "(5,)"),
        ("loss", torch.rand(4, device=META), ValueError, "meta"),
        ("loss_perturbed", torch.rand(5), ValueError, "(5,)"),
        ("loss_perturbed", torch.rand(4).bfloat16(), TypeError, "torch.bfloat16"),
        ("loss_perturbed", torch.rand(4, device=META), ValueError, "meta"),
    ],
    "subset_sample": [
        *floats("scores", (2, 4), [("scores", torch.rand(2, 4).half(), TypeError, "torch.float16")]),
        ("scores", torch.tensor(1.0), ValueError, "()"),
        *SAMPLE,
    ],
    "adlp_sample": [*TABLE, ("index", torch.tensor(1), ValueError, "()"), *SAMPLE],
    "subset_weights": [
        *floats("scores", (2, 4), [("scores", torch.rand(2, 4).half(), TypeError, "torch.float16")]),
        ("scores", torch.tensor(1.0), ValueError, "()"),
        ("positions", torch.tensor([[0, 3], [1, 2]], dtype=INT), TypeError, "torch.int32"),
        ("positions", [[0, 3], [1, 2]], TypeError, "[[0, 3], [1, 2]]"),
        ("positions", torch.tensor([0, 3]), ValueError, "(2,)"),
        ("positions", torch.tensor([[0, 3]]), ValueError, "(1, 2)"),
        ("positions", torch.empty(2, 0, dtype=LONG), ValueError, "(2, 0)"),
        ("positions", torch.zeros(2, 5, dtype=LONG), ValueError, "(2, 5)"),
        ("positions", torch.tensor([[0, 4], [1, 2], [0, 1]]), IndexError, "4"),
        ("positions", torch.tensor([[0, 3], [-1, 2], [0, 1]]), IndexError, "-1"),
        ("positions", torch.zeros(3, 2, dtype=LONG, device=META), ValueError, "meta"),
        ("noise", None, TypeError, "None"),
        *RACE,
    ],
    "sliced_variance": [
        *floats("norms", (10,), [("norms", torch.rand(10).half(), TypeError, "torch.float16")]),
        ("norms", torch.rand(9), ValueError, "9"),
        ("norms", torch.rand(2, 5), ValueError, "(2, 5)"),
        *integers("slices", 0, -3),
    ],
    "permute": [
        ("position", torch.tensor([3, 0, 3], dtype=INT), TypeError, "torch.int32"),
        ("position", [3, 0, 3], TypeError, "[3, 0, 3]"),
        ("position", torch.tensor(3), ValueError, "()"),
        ("position", torch.tensor([[3, 0, 3]]), ValueError, "(1, 3)"),
        ("position", torch.tensor([3, 4, 3]), IndexError, "4"),
        ("position", torch.tensor([3, -1, 3]), IndexError, "-1"),
        ("position", torch.tensor([3, 2**63 - 1, 3]), IndexError, str(2**63 - 1)),
        *integers("n", 0, -4, 2**62 + 1),
        ("keys", 7, TypeError, "7"),
        ("keys", list(range(7)), ValueError, "7"),
        ("keys", list(range(9)), ValueError, "9"),
        ("keys", [0] * 7 + [-1], ValueError, "-1"),
        ("keys", [1 << 32] + [0] * 7, ValueError, str(1 << 32)),
        ("keys", [0.5] + [0] * 7, TypeError, "0.5"),
    ],
    "perturb_": [
        *floating_lists("params", "grads"),
        *floating_lists("params", "backups"),
        *numbers("rho", -0.1),
        ("adaptive", "yes", TypeError, "'yes'"),
        ("maximize", "yes", TypeError, "'yes'"),
        ("norm", 0.5, TypeError, "0.5"),
        ("norm", torch.tensor(1), TypeError, "torch.int64"),
        ("norm", torch.tensor([0.5]), ValueError, "(1,)"),
        ("norm", torch.tensor(0.5, device=META), ValueError, "meta"),
    ],
    "restore_": tensor_lists("params", "backups"),
    "psf_capture_": [*floating_lists("psf", "grads"), *integers("norm_last", 0, 3)],
    "psf_reuse_": [
        *floating_lists("grads", "psf"),
        *numbers("scale"),
        ("scale", torch.tensor(1), TypeError, "torch.int64"),
        ("scale", torch.tensor([0.5]), ValueError, "(1,)"),
        ("scale", torch.tensor(0.5, device=META), ValueError, "meta"),
        ("limit", 0.5, TypeError, "0.5"),
        ("limit", torch.tensor(1), TypeError, "torch.int64"),
        ("limit", torch.tensor([0.5]), ValueError, "(1,)"),
        ("limit", torch.tensor(0.5, device=META), ValueError, "meta"),
    ],
}
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
    """A kernel takes pointers of its own kind alone."""
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
