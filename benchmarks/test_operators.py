"""Each compiled operator beside its plain-PyTorch reference, in one run: `make bench`.

Only the ratio of two rows of one group means something; the times depend on the machine.
"""

import pytest
import torch

from ausam_ext import ops, reference

WEIGHTS = {"s_min": 0.1, "s_max": 1.0}
COLUMNS = {"compiled": ops, "reference": reference}


@pytest.fixture(params=COLUMNS)
def column(request):
    return COLUMNS[request.param]


def resnet50_like():
    """161 tensors, 25.6 million parameters: the sizes of ResNet-50's."""
    shapes = [(64, 3, 7, 7), (64,), (64,)]
    width_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, width_in, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            shapes += [(width,)] * 4 + [(4 * width,)] * 2
            if block == 0:
                shapes += [(4 * width, width_in, 1, 1), (4 * width,), (4 * width,)]
            width_in = 4 * width
    shapes += [(1000, 2048), (1000,)]
    return [torch.randn(s) for s in shapes]


def draw(rows, n):
    return torch.rand(rows, n), torch.empty(rows, n).exponential_()


@pytest.mark.parametrize(
    ("rows", "n"), [(1, 128), (1, 512), (1, 1024), (1, 4096), (1, 1 << 20), (10000, 128)]
)
def test_subset_sample(benchmark, column, rows, n):
    benchmark.group = f"subset_sample, {rows} rows of {n}, noise given"
    scores, noise = draw(rows, n)
    benchmark(lambda: column.subset_sample(scores, n // 2, noise=noise, **WEIGHTS))


@pytest.mark.parametrize(("rows", "n"), [(1, 128), (1, 1024), (1, 1 << 20), (10000, 128)])
@pytest.mark.parametrize("sampler", ["subset_sample", "multinomial"])
def test_subset_sample_with_its_draw(benchmark, sampler, rows, n):
    benchmark.group = (
        f"subset_sample with its draw, {rows} rows of {n}, against min-max and torch.multinomial"
    )
    scores, _ = draw(rows, n)

    def multinomial():
        low = scores.amin(-1, keepdim=True)
        weights = (scores - low) / (scores.amax(-1, keepdim=True) - low) * 0.9 + 0.1
        return torch.multinomial(weights, n // 2)

    benchmark(multinomial if sampler == "multinomial" else lambda: ops.subset_sample(scores, n // 2))


@pytest.mark.parametrize("rows", [1, 10000])
def test_adlp_sample(benchmark, column, rows):
    benchmark.group = f"adlp_sample, {rows} rows of 128 from a table of 1.28 million"
    total, count = torch.rand(1_280_000), torch.ones(1_280_000, dtype=torch.int32)
    index, noise = torch.randint(0, 1_280_000, (rows, 128)), draw(rows, 128)[1]
    benchmark(lambda: column.adlp_sample(total, count, index, 64, noise=noise, **WEIGHTS))


@pytest.mark.parametrize("n", [128, 1 << 20])
def test_adlp_update(benchmark, column, n):
    benchmark.group = f"adlp_update_, {n} samples of a million"
    total, count = torch.zeros(1 << 20), torch.zeros(1 << 20, dtype=torch.int32)
    index, loss, loss_perturbed = torch.randint(0, 1 << 20, (n,)), torch.rand(n), torch.rand(n)
    benchmark(lambda: column.adlp_update_(total, count, index, loss, loss_perturbed))


def test_dlp(benchmark, column):
    benchmark.group = "dlp, 128 samples"
    loss, loss_perturbed = torch.rand(128), torch.rand(128)
    benchmark(lambda: column.dlp(loss, loss_perturbed))


def test_sliced_variance(benchmark, column):
    benchmark.group = "sliced_variance, N = 50, M = 5"
    norms = torch.rand(50)
    benchmark(lambda: column.sliced_variance(norms, 5))


@pytest.mark.parametrize("name", ["perturb_", "restore_", "psf_capture_", "psf_reuse_"])
def test_tensor_lists(benchmark, column, name):
    benchmark.group = f"{name}, tensors of ResNet-50"
    a = resnet50_like()
    b, c = [torch.randn_like(t) for t in a], [torch.empty_like(t) for t in a]
    arguments = {"perturb_": (a, b, c, 0.05), "psf_reuse_": (a, b, torch.tensor(1e-3))}.get(name, (a, b))
    assert len(a) == 161
    benchmark(lambda: getattr(column, name)(*arguments))


@pytest.mark.parametrize("call", ["psf_reuse_", "_foreach_add_"])
def test_psf_reuse_against_foreach(benchmark, call):
    benchmark.group = "psf_reuse_ against torch._foreach_add_, tensors of ResNet-50"
    a = resnet50_like()
    b = [torch.randn_like(t) for t in a]
    calls = {
        "psf_reuse_": lambda: ops.psf_reuse_(a, b, 1e-3),
        "_foreach_add_": lambda: torch._foreach_add_(a, b, alpha=1e-3),
    }
    benchmark(calls[call])
