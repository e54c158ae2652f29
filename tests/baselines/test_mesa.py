"""MESA: the network is held to what the average of its weights says."""

import copy

import pytest
import torch
import torch.nn.functional as F
from baselines.averaged import CLASSES, Network, batch, start, state_of, tensors, train
from helpers import assert_same_state
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ausam_ext.baselines import MESA


def test_worked_value():
    """z = (2, 0) and past = (1, 0), which an average that does not move keeps: as SAF's."""
    net = nn.Linear(1, 2, bias=False).double()
    net.weight.data = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    mesa = MESA(net, lam=0.3, decay=1.0, start_epoch=0)
    net.weight.data[0] = 2.0
    mesa.update()
    mesa.set_epoch(1)
    x = torch.ones(1, 1, dtype=torch.float64)
    term = mesa.penalty(net(x), x)
    term.backward()
    assert term.item() == pytest.approx(0.036821877, abs=5e-10)
    assert net.weight.grad.view(-1).tolist() == pytest.approx([0.073280494, -0.073280494], abs=5e-10)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.9998, 1.0])
def test_the_average_is_what_the_formula_says(decay):
    """v <- d v + (1 - d) w after each step, from w before the first; whole numbers are copied."""
    run = start({"decay": decay})
    averaged = tensors(run[0])

    def each():
        for name, w in tensors(run[0]).items():
            averaged[name] = decay * averaged[name] + (1 - decay) * w if w.is_floating_point() else w

    train(run, 25, each)
    for name, t in tensors(run[2].averaged.module).items():
        torch.testing.assert_close(t, averaged[name], rtol=1e-13, atol=1e-15)
    assert run[2].averaged.module.between[0].num_batches_tracked == 25
    assert isinstance(run[2].averaged, AveragedModel) and run[2].averaged.n_averaged == 26


@pytest.mark.parametrize("seed", range(5))
def test_the_term_is_of_the_average_in_evaluation_mode(seed):
    """Against the divergence in probabilities, and torch.func on a copy of the average."""
    run = train(start({"lam": 1.3, "tau": 2.0}, seed=seed), 7)
    net, _, mesa, _ = run
    x, _ = batch(100 + seed)
    reference = copy.deepcopy(net).eval()
    p = (torch.func.functional_call(reference, tensors(mesa.averaged.module), x) / 2).softmax(1).detach()
    z = net(x).detach().requires_grad_()
    q = (z / 2).softmax(1)
    before, random = tensors(mesa.averaged), torch.get_rng_state()
    term = mesa.penalty(z, x)
    assert term.item() == pytest.approx((1.3 * 4 * (p * (p / q).log()).sum(1).mean()).item(), rel=1e-10)
    term.backward()
    torch.testing.assert_close(z.grad, (1.3 * 2 * (q - p) / 10).detach(), rtol=1e-10, atol=1e-15)
    assert_same_state(
        tensors(mesa.averaged), before
    )  # its running statistics are not those of its own passes
    assert torch.equal(torch.get_rng_state(), random)


def test_an_average_that_was_evaluated_as_one_that_trains():
    net, _, mesa, _ = train(start({}), 7)
    x, _ = batch(100)
    z = net(x).detach()
    assert not any(m.training for m in MESA(net).averaged.modules())
    term = mesa.penalty(z, x)
    mesa.averaged.train()
    assert mesa.penalty(z, x) == term


def test_no_gradient_flows_through_the_average():
    """Also where what it is given has one, as the output of another network has."""
    _, _, mesa, _ = train(start({}), 3)
    x = batch(0)[0].requires_grad_()
    z = torch.randn(10, CLASSES, dtype=torch.float64, requires_grad=True)
    mesa.penalty(z, x).backward()
    assert z.grad.any() and x.grad is None
    assert all(p.grad is None for p in mesa.averaged.parameters())


def test_an_average_that_follows_at_once_is_sgd():
    """decay = 0, in a network without running statistics and dropout: the term compares it with itself."""
    run, plain = start({"decay": 0.0}, plain=True), start(plain=True)
    train(run, 20), train(plain, 20)
    for a, b in zip(run[0].parameters(), plain[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-15)


@pytest.mark.parametrize("options", [{"lam": 0.0}, {"start_epoch": 4}], ids=str)
def test_without_a_term_it_is_sgd_bit_for_bit(options):
    """And the average is kept, but not run."""
    run, plain, calls = start(options), start(), []
    run[2].averaged.register_forward_hook(lambda *_: calls.append(1))
    before = run[2].averaged.module.first.weight.clone()
    assert_same_state(state_of(train(run, 20)), state_of(train(plain, 20)))
    assert not calls
    assert not torch.equal(run[2].averaged.module.first.weight, before)
    if options.get("start_epoch"):
        train((*run[:3], 20), 1)
        assert calls == [1]


def test_with_a_term_it_is_not():
    run, plain = start({}), start()
    train(run, 20), train(plain, 20)
    assert not torch.equal(run[0].first.weight, plain[0].first.weight)


@pytest.mark.parametrize("stop", [1, 6, 13])
def test_resumed_at_any_step_it_gives_the_same_bits(stop, tmp_path):
    options = {"start_epoch": 1}
    run = train(start(options), stop)
    torch.save([run[0].state_dict(), run[1].state_dict(), run[2].state_dict()], tmp_path / "run.pt")
    other = start(options, seed=1)
    for part, state in zip(other, torch.load(tmp_path / "run.pt", weights_only=True), strict=False):
        part.load_state_dict(state)
    assert_same_state(other[2].state_dict(), run[2].state_dict())
    ends = [train(run, 9), train((*other[:3], stop), 9)]
    assert_same_state(*(state_of(end) for end in ends))
    assert_same_state(*(end[2].state_dict() for end in ends))


def test_within_one_autocast_block_the_average_is_the_latest():
    """Autocast keeps what it cast of weights that train until its block ends."""
    net, x = nn.Linear(6, CLASSES), batch(0)[0].float()
    mesa, other = (MESA(net, decay=0.5, start_epoch=-1) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        z = net(x).detach()
        assert mesa.penalty(z, x) == 0
        with torch.no_grad():
            net.weight.mul_(-2)
        mesa.update(), other.update()
        term = mesa.penalty(z, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert term == other.penalty(z, x) > 0
    assert term.dtype == torch.float32


def test_an_overflow_of_the_average_drops_the_term_of_that_sample():
    """And one of the network skips the step, as without MESA."""
    net, scaler = nn.Linear(1, 2, bias=False), torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    mesa = MESA(net, decay=1.0, start_epoch=-1)
    with torch.no_grad():
        mesa.averaged.module.weight.fill_(3.0), net.weight.copy_(torch.tensor([[0.5], [-0.5]]))
    for x, skipped in ((1.0, False), (6e4, False), (1e6, True), (1.0, False)):
        before, inputs = net.weight.detach().clone(), torch.tensor([[x], [2.0]])
        with torch.autocast("cpu", torch.float16):
            logits = net(inputs)
            term = mesa.penalty(logits, inputs)
            loss = F.cross_entropy(logits, torch.tensor([0, 1])) + term
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(net.weight, before) == skipped
        assert net.weight.isfinite().all()
    assert scaler.get_scale() == 2.0


def test_what_ddp_wraps_is_averaged(free_port):
    """No copy of the wrapper, which would talk to the other processes."""
    store = torch.distributed.TCPStore("127.0.0.1", free_port, 1, True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        net = Network(plain=True)
        wrapped = DistributedDataParallel(net)
        mesa = MESA(wrapped, start_epoch=-1)
        assert not [m for m in mesa.averaged.modules() if isinstance(m, DistributedDataParallel)]
        x, _ = batch(0)
        assert mesa.penalty(wrapped(x), x) == 0
        del wrapped
    finally:
        torch.distributed.destroy_process_group()
