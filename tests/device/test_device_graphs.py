"""CUDA graphs of every operator and of whole training steps: replays give the bits of eager calls.

Where there is no GPU a replay is another call, so that the tests themselves are tried.
"""

from functools import partial

import pytest
import torch
from device.copies import fill, on, tensors
from device.mode import no_synchronisation
from device.training import AUSAM, BATCH, STEPS, VSAMTraining, capturable_adam, run, sgd
from helpers import same_bits
from ops.samples import NAMES, sample_inputs

from ausam_ext import ops


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
    """The graph would be plain SGD in every replay."""
    training = VSAMTraining(device)
    training.load(0)
    if device == "cpu":
        monkeypatch.setattr(training.vsam, "_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"no PSF to capture; capture the step with perturbed\(\) first"):
        capture(training.reuse_step, device)[0]()
