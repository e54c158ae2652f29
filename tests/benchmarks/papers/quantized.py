"""What both kinds of quantised networks have to do."""

import copy

import torch
import torch.nn.functional as F
from helpers import assert_same_state
from networks import closure_of

from ausam_ext import SAM
from benchmarks.networks import mobilenet_v1, resnet18


def seeded(make):
    torch.manual_seed(0)
    return make(width=4)


NETWORKS = {"ResNet-18": lambda: seeded(resnet18), "MobileNetV1": lambda: seeded(mobilenet_v1)}


def images(seed=0, n=8):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 32, 32, generator=g), torch.randint(0, 10, (n,), generator=g)


def outputs(model, kind, x):
    """What each module of this kind returns, by name."""
    found = {}
    handles = [
        m.register_forward_hook(lambda _m, _x, y, name=name: found.setdefault(name, y.detach()))
        for name, m in model.named_modules()
        if isinstance(m, kind)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return found


def assert_sam_counts_a_batch_once(model):
    """After two steps all buffers and weights are what one forward pass on each batch makes them."""
    plain, sam = copy.deepcopy(model), SAM(model, rho=0.5)
    for seed in range(2):
        x, y = images(seed)
        plain(x)
        sam.backward(closure_of(model, x, y))
        assert_same_state(model.state_dict(), plain.state_dict())


def assert_the_second_pass_alone_would_count(model, names):
    """The buffers of these names differ after a pass at other weights: the test above compares something."""
    x, _ = images()
    model(x)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1
        model(x)
    after = model.state_dict()
    moved = [name for name in before if name.rpartition(".")[2] in names and after[name] != before[name]]
    assert len(moved) > len(names)


def assert_learns(model):
    x, y = images()
    sam, optimizer = SAM(model), torch.optim.SGD(model.parameters(), 0.003, momentum=0.9)
    losses = []
    for _ in range(60):
        losses.append(sam.backward(closure_of(model, x, y))[0].mean().item())
        optimizer.step()
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5]), losses


def assert_resumes(model, other):
    """The state is complete: ``other`` computes the same with it from other images, also in training."""
    model(images()[0])
    other.load_state_dict(model.state_dict())
    x = 3 * images(1)[0]
    for training in (True, False):
        assert torch.equal(model.train(training)(x), other.train(training)(x))


def assert_autocast(model):
    x, y = images()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(x), y)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
