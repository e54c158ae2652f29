"""torch.compile of models and whole steps: no graph break of ours, no endless recompiling, equal results."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

from ausam_ext import ADLP, SAM, VSAM

# Of torch's own code.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning",
)

# What torch itself cannot trace unless it is asked to.
TORCHS_OWN = ("Tensor.backward() call", "torch._dynamo.graph_break()")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced_backward(dynamo_unharmed):
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))


def data(step):
    g = torch.Generator().manual_seed(step)
    return torch.randn(20, 6, generator=g), torch.randint(0, 3, (20,), generator=g)


class Training:
    """The steps as functions of only tensors."""

    def __init__(self, method, compile_model=False):
        self.model = network()
        self.forward = torch.compile(self.model) if compile_model else self.model
        self.adlp = ADLP(20) if method == "AUSAM" else None
        if method == "VSAM":
            options = {"warmup_steps": 5, "window": 6, "slices": 2, "initial_samples": 2, "alpha": 0.5}
            self.sam = VSAM(self.forward, 0.3, **options)
        else:
            self.sam = SAM(self.forward, 0.3)

    def two_passes(self, x, y):
        loss = F.cross_entropy(self.forward(x), y, reduction="none")
        loss.mean().backward()
        with self.sam.perturbed():
            loss_perturbed = F.cross_entropy(self.forward(x), y, reduction="none")
            loss_perturbed.mean().backward()
        if self.adlp is not None:
            self.adlp.update(torch.arange(20), loss.detach(), loss_perturbed.detach())
        return loss_perturbed.detach()

    def one_pass(self, x, y):
        loss = F.cross_entropy(self.forward(x), y, reduction="none")
        loss.mean().backward()
        self.sam.reuse_()
        return loss.detach()

    def run(self, two_passes, one_pass, steps):
        """Yields after every step."""
        for step in range(steps):
            sampled = self.sam.decide() if isinstance(self.sam, VSAM) else True
            loss = (two_passes if sampled else one_pass)(*data(step))
            yield loss, sampled
            with torch.no_grad():
                for p in self.model.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None


def assert_close(compiled, eager):
    for a, b in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
    for a, b in zip(compiled.model.buffers(), eager.model.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    if eager.adlp is not None:
        torch.testing.assert_close(compiled.adlp.total, eager.adlp.total, rtol=1e-3, atol=1e-6)
        assert torch.equal(compiled.adlp.count, eager.adlp.count)
        assert torch.equal(compiled.adlp.tried, eager.adlp.tried)


@pytest.mark.parametrize("method", ["SAM", "AUSAM", "VSAM"])
def test_whole_steps_are_one_graph_each(traced_backward, method):
    compiled, eager = Training(method), Training(method)
    both = [torch.compile(f, fullgraph=True) for f in (compiled.two_passes, compiled.one_pass)]
    steps = 24 if method == "VSAM" else 8
    ours, theirs = compiled.run(*both, steps), eager.run(eager.two_passes, eager.one_pass, steps)
    seen, graphs = set(), []
    for (loss, sampled), (expected, also_sampled) in zip(ours, theirs, strict=True):
        assert sampled == also_sampled
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
        assert_close(compiled, eager)
        seen.add(sampled)
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    assert seen == ({True, False} if method == "VSAM" else {True})
    # Once more after the first step, when the copies exist, and for the ages of a PSF that is reused.
    assert graphs[-1] == graphs[len(graphs) // 2] <= (6 if method == "VSAM" else 2)


@pytest.mark.parametrize("method", ["SAM", "AUSAM", "VSAM"])
def test_by_default_only_torch_breaks_the_graph(method):
    compiled, eager = Training(method), Training(method)
    both = [torch.compile(f) for f in (compiled.two_passes, compiled.one_pass)]
    steps = 24 if method == "VSAM" else 8
    graphs = []
    for _ in zip(compiled.run(*both, steps), eager.run(eager.two_passes, eager.one_pass, steps), strict=True):
        assert_close(compiled, eager)
        graphs.append(counters["stats"]["unique_graphs"])
    assert counters["graph_break"]
    for reason in counters["graph_break"]:
        assert any(own in reason for own in TORCHS_OWN), reason
    assert graphs[-1] == graphs[len(graphs) // 2]


@pytest.mark.parametrize("method", ["SAM", "AUSAM", "VSAM"])
def test_a_compiled_model_sees_the_perturbed_weights(method):
    compiled, eager = Training(method, compile_model=True), Training(method)
    graphs = []
    ours = compiled.run(compiled.two_passes, compiled.one_pass, 8)
    for (loss, _), (expected, _) in zip(ours, eager.run(eager.two_passes, eager.one_pass, 8), strict=True):
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
        assert_close(compiled, eager)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [1] * 8


def test_the_module_within_a_compiled_one_serves_too():
    """Both have the same parameters."""
    a, b = network(), network()
    forward, (x, y) = torch.compile(a), data(0)
    for model, call in ((a, forward), (b, b)):
        F.cross_entropy(call(x), y).backward()
        with SAM(model, 0.3).perturbed():
            F.cross_entropy(call(x), y).backward()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
