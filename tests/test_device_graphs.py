"""CUDA graphs of every operator and of whole training steps: replays give the bits of eager calls.

Where there is no GPU a replay is another call, so that the tests themselves are tried.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from device_mode import no_synchronisation
from helpers import same_bits
from test_device_operators import on
from test_operator_contract import NAMES, sample_inputs
from torch import nn
from torch.utils._pytree import tree_leaves

from ausam_ext import ADLP, SAM, VSAM, ops


def tensors(values):
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


def capture(function, device):
    """A replay of one call of `function`, and the tensors that hold its result after each."""
    if device == "cpu":
        held = []

        def replay():
            result = tensors(function())
            held[:] = held or [torch.empty_like(t) for t in result]
            for t, value in zip(held, result, strict=True):
                t.copy_(value)

        return replay, held
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = tensors(function())
    return graph.replay, result


def warm_up(function, device, times=3):
    """Calls before a capture go to a side stream, as torch asks for it."""
    if device == "cpu":
        for _ in range(times):
            function()
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(times):
            function()
    torch.cuda.current_stream().wait_stream(side)


def fill(targets, sources):
    for t, s in zip(tensors(targets), tensors(sources), strict=True):
        t.copy_(s)


@pytest.mark.parametrize("name", NAMES)
def test_operators(device, name):
    operator = getattr(ops, name)
    for i in range(len(sample_inputs(name))):
        args, kwargs = static = on(device, sample_inputs(name)[i])
        call = partial(operator, *args, **kwargs)
        warm_up(call, device)
        replay, results = capture(call, device)
        for _ in range(3):
            fresh = on(device, sample_inputs(name)[i])
            fill(static, fresh)
            with no_synchronisation(device):
                replay()
            expected = operator(*fresh[0], **fresh[1])
            assert all(map(same_bits, results, tensors(expected)))
            assert all(map(same_bits, tensors(static), tensors(fresh)))


N, BATCH, STEPS = 97, 32, 30


def sgd(params, device):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def capturable_adam(params, device):
    return torch.optim.Adam(params, lr=0.01, capturable=device == "cuda")  # torch has it for GPUs alone


class Training:
    """A network, its optimizer and the buffers that a step reads."""

    def __init__(self, device, make=sgd):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, 3))
        self.model = network.to(device)
        self.optimizer = make(self.model.parameters(), device)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(N, 6, generator=generator)
        self.data = x.to(device), (x[:, 0] > 0).long().to(device)
        self.index = torch.zeros(BATCH, dtype=torch.int64, device=device)
        self.x, self.y = torch.zeros(BATCH, 6, device=device), self.index.clone()
        self.order = [torch.randint(0, N, (BATCH,), generator=generator).to(device) for _ in range(STEPS)]

    def load(self, step):
        index = self.order[step % STEPS]
        fill([self.index, self.x, self.y], [index, *(t[index] for t in self.data)])

    def losses(self):
        return F.cross_entropy(self.model(self.x), self.y, reduction="none")

    def state(self):
        held = [self.model.state_dict(), self.optimizer.state_dict()]
        return [t.clone() for t in tensors(held)]


class AUSAM(Training):
    def __init__(self, device, make=sgd):
        super().__init__(device, make)
        self.sam, self.adlp = SAM(self.model, 0.1), ADLP(N, device)

    def step(self):
        self.optimizer.zero_grad()
        loss = self.losses()
        loss.mean().backward()
        with self.sam.perturbed():
            loss_perturbed = self.losses()
            loss_perturbed.mean().backward()
        self.adlp.update(self.index, loss, loss_perturbed)
        self.optimizer.step()
        return loss.detach()

    def state(self):
        return [*super().state(), *(t.clone() for t in (self.adlp.total, self.adlp.count, self.adlp.tried))]


def run(training, steps, step):
    losses = []
    for i in steps:
        training.load(i)
        result = step()
        losses += [t.clone() for t in tensors(result)]
    return losses


@pytest.mark.parametrize("make", [sgd, capturable_adam])
def test_ausam_step(device, make):
    eager, graphed = AUSAM(device, make), AUSAM(device, make)
    for training in (eager, graphed):
        training.load(0)
        warm_up(training.step, device)
    replay, loss = capture(graphed.step, device)
    for i in range(STEPS):
        graphed.load(i)
        with no_synchronisation(device):
            replay()
        (expected,) = run(eager, [i], eager.step)
        assert same_bits(loss[0], expected), i
        if device == "cuda" and i == 0:  # cuBLAS has its memory of each stream
            allocated = torch.cuda.memory_allocated()
    assert all(map(same_bits, graphed.state(), eager.state()))
    assert graphed.adlp.count.sum() == (3 + STEPS) * BATCH
    if device == "cuda":
        replay()
        assert torch.cuda.memory_allocated() <= allocated + 4096 * STEPS


class VSAMTraining(Training):
    def __init__(self, device):
        super().__init__(device)
        self.vsam = VSAM(
            self.model, 0.2, warmup_steps=3, window=10, slices=2, initial_samples=4, alpha=0.5, max_reuse=3
        )

    def sampled_step(self):
        self.optimizer.zero_grad()
        self.losses().mean().backward()
        with self.vsam.perturbed():
            self.losses().mean().backward()
        self.optimizer.step()

    def reuse_step(self):
        self.optimizer.zero_grad()
        self.losses().mean().backward()
        self.vsam.reuse_()
        self.optimizer.step()

    def step(self):
        self.sampled_step() if self.vsam.decide() else self.reuse_step()


def test_both_vsam_steps(device, monkeypatch):
    """The host decides; each decision is a graph. The PSF and its decay pass from one to the other."""
    eager, graphed = VSAMTraining(device), VSAMTraining(device)
    for training in (eager, graphed):
        training.load(0)
        warm_up(training.step, device, times=20)
        warm_up(training.reuse_step, device, times=5)  # the PSF that the capture finds is used up
    if device == "cpu":  # where these calls run, but are taken for captured ones
        monkeypatch.setattr(graphed.vsam, "_capturing", lambda: True)
    sampled, _ = capture(graphed.sampled_step, device)
    reuse, _ = capture(graphed.reuse_step, device)
    # The first replay has to be a sampled one: what a capture holds is not computed.
    graphed.vsam.warmup_steps = eager.vsam.warmup_steps = 20 + 5 + 1
    decisions = []
    for i in range(STEPS):
        decision = graphed.vsam.decide()
        decisions.append(decision)
        graphed.load(i)
        with no_synchronisation(device):
            (sampled if decision else reuse)()
        graphed.vsam.replayed()
        assert eager.vsam.decide() == decision, i
        run(eager, [i], eager.step)
        assert all(map(same_bits, graphed.state(), eager.state())), i
    assert decisions[0] and 5 < sum(decisions) < STEPS - 5
    assert graphed.vsam.controller.s == eager.vsam.controller.s != 4


def test_what_is_captured_reuses_a_psf_of_any_age(monkeypatch):
    """Else a capture after max_reuse iterations without a sample would hold plain SGD."""
    training = VSAMTraining("cpu")
    training.load(0)
    training.sampled_step()
    warm_up(training.reuse_step, "cpu", times=4)
    psf = training.vsam.state_dict()["psf"]
    for capturing in (False, True):
        monkeypatch.setattr(training.vsam, "_capturing", lambda capturing=capturing: capturing)
        training.optimizer.zero_grad()
        training.losses().mean().backward()
        before = [p.grad.clone() for p in training.model.parameters()]
        decay = training.vsam.state_dict()["decay"] * training.vsam.gamma
        training.vsam.reuse_()
        for p, g, change in zip(training.model.parameters(), before, psf, strict=True):
            torch.testing.assert_close(p.grad, g + decay * change if capturing else g, rtol=1e-6, atol=1e-8)
    assert decay > 0.4 and max(change.abs().max() for change in psf) > 1e-3


def test_reuse_is_not_captured_before_there_is_a_psf(device, monkeypatch):
    """The graph would be plain SGD for ever."""
    training = VSAMTraining(device)
    training.load(0)
    if device == "cpu":
        monkeypatch.setattr(training.vsam, "_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"no PSF to capture; capture the step with perturbed\(\) first"):
        capture(training.reuse_step, device)[0]()
