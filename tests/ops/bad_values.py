"""Arguments that each function accepts, and bad ones with the exception and the message that they get."""

import torch
from helpers import exponential

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
