"""SAF in training loops: SGD without a term, resuming, overflow, processes, AUSAM's batches."""

import pytest
import torch
import torch.nn.functional as F
from baselines.past_logits import CLASSES, N, always, data, network, rows, start, state_of, train, visit
from helpers import assert_same_state
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, AUSAMBatchSampler
from ausam_ext.baselines import SAF


@pytest.mark.parametrize(
    "options", [{"lam": 0.0, "start_epoch": -1}, {"start_epoch": 6}, {"start_epoch": 0, "delay": 9}]
)
def test_without_a_term_it_is_sgd_bit_for_bit(options):
    """``lam`` is 0; no epoch comes after ``start_epoch``; none is old enough."""
    run, plain = start(SAF(N, CLASSES, **options)), start()
    assert_same_state(state_of(train(run, 35)), state_of(train(plain, 35)))


def test_with_a_term_it_is_not():
    run, plain = start(SAF(N, CLASSES, start_epoch=0, delay=1)), start()
    train(run, 35), train(plain, 35)
    assert not torch.equal(run[0][0].weight, plain[0][0].weight)


@pytest.mark.parametrize("stop", [3, 17, 34])
def test_resumed_at_any_step_it_gives_the_same_bits(stop, tmp_path):
    """Also within an epoch, whose slot is half full."""
    options = {"delay": 2, "start_epoch": 1, "dtype": torch.float16}
    run = train(start(SAF(N, CLASSES, **options)), stop)
    torch.save([run[0].state_dict(), run[1].state_dict(), run[2].state_dict()], tmp_path / "run.pt")
    other = start(SAF(N, CLASSES, **options), seed=1)
    for part, state in zip(other, torch.load(tmp_path / "run.pt", weights_only=True), strict=False):
        part.load_state_dict(state)
    assert_same_state(other[2].state_dict(), run[2].state_dict())
    ends = [train(run, 20), train((*other[:3], stop), 20)]
    assert_same_state(*(state_of(end) for end in ends))
    assert_same_state(*(end[2].state_dict() for end in ends))


def test_an_overflow_skips_the_step_and_the_run_goes_on():
    """In float16 the logits of one sample overflow in epoch 2: there is no step, and no term of it later."""
    net, scaler = nn.Linear(1, 2, bias=False), torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    saf, index = SAF(2, 2, delay=1, start_epoch=0), torch.arange(2)
    for epoch, x in enumerate([1.0, 1.0, 1e6, 1.0, 1.0]):
        saf.set_epoch(epoch)
        before = net.weight.detach().clone()
        with torch.autocast("cpu", torch.float16):
            logits = net(torch.tensor([[x], [2.0]]))
            term = saf.penalty(index, logits)
            loss = F.cross_entropy(logits, torch.tensor([0, 1])) + term
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(net.weight, before) == (epoch == 2)
        assert net.weight.isfinite().all()
        assert epoch == 2 or term.isfinite()
    assert scaler.get_scale() == 2.0


def test_each_process_knows_what_it_saw():
    """Two tables; in epoch 1 each process has what the other had in epoch 0, and in epoch 2 its own again."""
    tables = [always(delay=1), always(delay=1)]
    shares = [range(0, N, 2), range(1, N, 2)]
    z = rows(12)
    for rank, saf in enumerate(tables):
        own, others = shares[rank], shares[1 - rank]
        visit(saf, 0, own, z[: len(own)])
        assert visit(saf, 1, others, z[: len(others)]) == 0
        visit(saf, 2, own, z[: len(own)])
        assert visit(saf, 3, own, 2 * z[: len(own)]) > 0


def test_in_a_loop_with_batches_that_say_which_samples_they_are():
    """As in the docstring."""
    x, y = data()
    net, saf, seen = network(), SAF(N, CLASSES, start_epoch=1, delay=1), []
    sampler = AUSAMBatchSampler(ADLP(N), 5, full_epochs=9)
    loader = DataLoader(TensorDataset(x, y), batch_sampler=sampler)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        saf.set_epoch(epoch)
        for index, (x, y) in sampler.indexed(loader):
            logits = net(x)
            (F.cross_entropy(logits, y) + saf.penalty(index, logits)).backward()
            seen.append((epoch, saf.penalty(index, logits).item() > 0))
    assert seen == [(0, False)] * 5 + [(1, False)] * 5 + [(2, True)] * 5
