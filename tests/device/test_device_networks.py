"""What only a device shows at size: compiled steps, bfloat16 in channels_last, loaders with workers.

Compiled steps run in test_compile.py on the CPU; tensors of more than 2^31 elements are for a GPU only.
"""

import re

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, same_bits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler, ops


def convolutional(device, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 17, 3, padding=1, bias=False),
        nn.BatchNorm2d(17),
        nn.ReLU(),
        nn.Conv2d(17, 24, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
    return model.to(device, dtype)


def images(device, count=24):
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(count, 3, 12, 12, generator=g), torch.randint(0, 5, (count,), generator=g)
    return x.to(device), y.to(device)


def relative(a, b):
    """How far the lists of tensors are apart, over all elements."""
    pairs = [(x.double().flatten().cpu(), y.double().flatten().cpu()) for x, y in zip(a, b, strict=True)]
    difference, size = (torch.cat([f(x, y) for x, y in pairs]) for f in (torch.sub, lambda x, y: y))
    return (difference.norm() / size.norm()).item()


@pytest.fixture
def compiler(dynamo_unharmed):
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("default")  # torch's compiler warns, also of what a GPU could do faster
@pytest.mark.parametrize("method", ["SAM", "AUSAM"])
def test_compiled_steps(device, method, compiler):
    """A whole step as one graph gives what the eager one gives."""
    if device == "cpu":
        pytest.skip("test_compile.py has it")
    x, y = images(device)
    ends = []
    for compiled in (False, True):
        model, adlp = convolutional(device), ADLP(len(y), device)
        sam, index = SAM(model, 0.1), torch.arange(len(y), device=device)

        def step(model=model, adlp=adlp, sam=sam, index=index):
            loss = F.cross_entropy(model(x), y, reduction="none")
            loss.mean().backward()
            with sam.perturbed():
                perturbed = F.cross_entropy(model(x), y, reduction="none")
                perturbed.mean().backward()
            if method == "AUSAM":
                adlp.update(index, loss.detach(), perturbed.detach())

        with torch._dynamo.config.patch(trace_autograd_ops=True):
            call = torch.compile(step, fullgraph=True) if compiled else step
            for _ in range(3):
                call()
                with torch.no_grad():
                    for p in model.parameters():
                        p -= 0.05 * p.grad
                        p.grad = None
        ends.append([*model.state_dict().values(), adlp.total, adlp.count])
    assert relative(ends[1], ends[0]) < 1e-3
    assert (ends[1][-1] == (3 if method == "AUSAM" else 0)).all()


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [SAM, VSAM])
def test_convolutions_in_bfloat16_and_channels_last(device, method, parameters):
    """By autocast, and as weights of that dtype: near float64; the weights keep their bits and layout."""
    x, y = images(device)
    gradients = []
    for dtype in (torch.float64, parameters):
        model = convolutional(device, dtype)
        if dtype == parameters:
            model = model.to(memory_format=torch.channels_last)
        options = {"warmup_steps": 0, "window": 4, "slices": 2, "initial_samples": 2, "norm_params": None}
        sam = method(model, 0.05, **(options if method is VSAM else {}))
        weights = list(model.parameters())
        before = [p.clone() for p in weights]
        found = []
        for second in (True, False) if method is VSAM else (True,):

            def backward(model=model, dtype=dtype):
                inputs = x.to(dtype).to(memory_format=torch.channels_last)
                with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.float32):
                    losses = F.cross_entropy(model(inputs), y, reduction="none")
                losses.mean().backward()

            backward()
            if second:
                with sam.perturbed():
                    assert not same_bits(weights[0], before[0])
                    backward()
            else:
                sam.reuse_()
            found += [p.grad.clone() for p in weights]
            for p in weights:
                p.grad = None
        assert all(map(same_bits, weights, before))
        assert dtype == torch.float64 or weights[0].is_contiguous(memory_format=torch.channels_last)
        gradients.append(found)
    assert relative(gradients[1], gradients[0]) < 0.1


def test_the_page_about_graphs(device):
    """All its code, in order; test_docs.py runs what needs no GPU."""
    if device == "cpu":
        pytest.skip("for a GPU")
    page = ROOT / "docs/cuda_graphs.md"
    code = {"__name__": "page"}
    for block in re.findall(r"```(?:python|py)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, page.name, "exec"), code)
    assert code["adlp"].count.sum() == (3 + 2 * 3) * code["kept"]
    assert all(p.isfinite().all() for p in code["model"].parameters())


@pytest.mark.parametrize("pinned", [False, True])
def test_workers_and_indexed(device, pinned):
    """Every sample comes with its own index, also from processes that load ahead into pinned memory."""
    if pinned and not torch.cuda.is_available():
        pytest.skip("there is no memory to pin for")
    count = 101
    data = TensorDataset(torch.arange(count).float().view(-1, 1), torch.arange(count))
    adlp = ADLP(count, device)
    batches = AUSAMBatchSampler(adlp, 16, alpha=0.5)
    loader = DataLoader(
        data,
        batch_sampler=batches,
        num_workers=2,
        pin_memory=pinned,
        persistent_workers=True,
        prefetch_factor=3,
    )
    for epoch in range(3):
        batches.set_epoch(epoch)
        seen = 0
        for index, (x, y) in batches.indexed(loader):
            assert y.is_pinned() == pinned and index.device.type == device
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            assert torch.equal(index, y) and torch.equal(x[:, 0].long(), y)
            adlp.update(index, torch.zeros(len(y), device=device), y / count)
            seen += len(y)
        assert seen == (count if epoch == 0 else 6 * 8 + 2)
    assert adlp.count.sum() == count + 2 * 50
    adlp.check()


WRAP = 2**31
LARGE = WRAP + 4099  # no multiple of what a thread takes at once


@pytest.fixture
def room(device):
    if device != "cuda":
        pytest.skip("for a GPU")
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("the GPU has less than 40 GB")
    yield
    torch.cuda.empty_cache()


def test_more_than_2_to_31_elements_in_lists(device, room):
    """bfloat16, of which each operator gives exactly what these values say."""

    def made(value):
        return torch.full((LARGE,), value, dtype=torch.bfloat16, device=device)

    w, g, backup = made(1.0), made(0.0), made(7.0)
    g[WRAP + 1] = 3.0
    g[-1] = 4.0
    norm = ops.perturb_([w], [g], [backup], 1.0)
    assert norm.item() == pytest.approx(5.0, rel=1e-5)
    assert (backup == 1).all()
    assert w[WRAP + 1].item() == 1.6015625 and w[-1].item() == 1.796875 and (w[:WRAP] == 1).all()
    ops.restore_([w], [backup])
    assert (w == 1).all()
    del backup
    psf = g.clone()
    g += 1  # psf held the first gradient: what is left is 1 everywhere
    psf_norm, sgd_norm = ops.psf_capture_([psf], [g])
    assert sgd_norm.item() == pytest.approx(5.0, rel=1e-5)
    assert psf_norm.item() == pytest.approx(LARGE**0.5, rel=1e-4)
    assert (psf == 1).all()
    ops.psf_reuse_([g], [psf], 0.5)
    assert g[-1].item() == 5.5 and g[WRAP + 1].item() == 4.5 and (g[:WRAP] == 1.5).all()


def test_more_than_2_to_31_candidates(device, room):
    """As rows: the chosen of the last row are those of that row by itself."""
    k = 128
    rows = LARGE // k + 1
    scores = torch.rand(rows, k, device=device)
    noise = torch.empty(rows, k, device=device).exponential_()
    chosen = ops.subset_sample(scores, 2, noise=noise)
    for row in (0, WRAP // k - 1, WRAP // k, rows - 1):
        assert torch.equal(chosen[row], ops.subset_sample(scores[row], 2, noise=noise[row])), row
