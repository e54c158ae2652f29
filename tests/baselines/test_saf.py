"""SAF: each sample is held to its logits of some epochs ago."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, AUSAMBatchSampler
from ausam_ext.baselines import SAF

N, CLASSES = 23, 4


def rows(n=N, seed=0, dtype=torch.float64):
    return (
        torch.randn(n, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
        * 3
    )


def visit(saf, epoch, index, logits):
    saf.set_epoch(epoch)
    return saf.penalty(torch.tensor(index), logits)


def always(**options):
    """With a term from the start, so that all that is seen is the past."""
    return SAF(N, CLASSES, start_epoch=-1, **{"delay": 2, "dtype": torch.float64, **options})


def network(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, CLASSES)]
    return nn.Sequential(*layers).double()


def data():
    g = torch.Generator().manual_seed(5)
    return torch.randn(N, 6, generator=g, dtype=torch.float64), torch.randint(0, CLASSES, (N,), generator=g)


def batches(epoch, size=5):
    return torch.randperm(N, generator=torch.Generator().manual_seed(epoch)).split(size)


def train(run, steps):
    """Trains ``(network, optimizer, SAF or None, step)`` for so many steps; in place, but for the step."""
    net, optimizer, saf, begun = run
    x, y = data()
    for step in range(begun, begun + steps):
        epoch, place = divmod(step, len(batches(0)))
        index = batches(epoch)[place]
        torch.manual_seed(step)  # of the dropout
        optimizer.zero_grad()
        logits = net(x[index])
        loss = F.cross_entropy(logits, y[index])
        if saf is not None:
            saf.set_epoch(epoch)
            loss = loss + saf.penalty(index, logits)
        loss.backward()
        optimizer.step()
    return net, optimizer, saf, begun + steps


def start(saf=None, seed=0):
    net = network(seed)
    return net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), saf, 0


def state_of(run):
    return run[0].state_dict(), run[1].state_dict()


def test_worked_value():
    """p = softmax(1/5, 0), q = softmax(2/5, 0); KL = sum p ln(p/q); the gradient is lam tau (q - p)."""
    saf, z = SAF(1, 2), torch.tensor([[2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0])
    saf.set_epoch(3)
    assert saf.penalty(index, torch.tensor([[1.0, 0.0]], dtype=torch.float64)) == 0
    saf.set_epoch(6)
    term = saf.penalty(index, z)
    term.backward()
    assert term.item() == pytest.approx(0.036821877, abs=5e-10)
    assert term.item() / (0.3 * 25) == pytest.approx(0.0049095836, abs=5e-11)
    assert z.grad.tolist()[0] == pytest.approx([0.073280494, -0.073280494], abs=5e-10)


def expected(history, saf, epoch, index, logits):
    """By the definition, a sample at a time: the term and its gradient."""
    total, gradient = 0.0, torch.zeros_like(logits)
    if epoch > saf.start_epoch:
        for row, i in enumerate(index):
            if (i, epoch - saf.delay) in history:
                p = (history[i, epoch - saf.delay] / saf.tau).softmax(0)
                q = (logits[row] / saf.tau).softmax(0)
                total += (p * (p / q).log()).sum().item() / len(index)
                gradient[row] = saf.lam * saf.tau * (q - p) / len(index)
    return saf.lam * saf.tau**2 * total, gradient


@pytest.mark.parametrize("seed", range(30))
def test_the_term_of_any_visits(seed):
    """Samples miss epochs, epochs are missed, and a run goes several times round the slots."""
    draw = random.Random(seed)
    saf = SAF(
        N,
        CLASSES,
        lam=draw.uniform(0.1, 2),
        tau=draw.uniform(0.5, 8),
        delay=draw.randint(1, 4),
        start_epoch=draw.randint(-1, 4),
        dtype=torch.float64,
    )
    history, terms = {}, 0
    epochs = [e for e in range(14) if draw.random() < 0.8]
    for epoch in epochs:
        saf.set_epoch(epoch)
        seen = [i for i in range(N) if draw.random() < 0.6]
        draw.shuffle(seen)
        for index in (seen[:7], seen[7:]):
            logits = rows(len(index), seed=draw.randrange(10**9)).requires_grad_()
            term = saf.penalty(torch.tensor(index, dtype=torch.int64), logits)
            for i, row in zip(index, logits.detach(), strict=True):
                history[i, epoch] = row
            if not index:
                continue
            value, gradient = expected(history, saf, epoch, index, logits.detach())
            assert term.item() == pytest.approx(value, rel=1e-12, abs=1e-14)
            (0 * logits.sum() + term).backward()
            torch.testing.assert_close(logits.grad, gradient, rtol=1e-12, atol=1e-14)
            terms += value != 0
    assert terms > 0


def test_the_mean_is_over_the_whole_batch():
    """So that what a sample weighs does not depend on who is beside it."""
    saf, z = always(), rows(2, seed=1)
    visit(saf, 0, [0], rows(1))
    alone = visit(copy.deepcopy(saf), 2, [0], z[:1])
    beside = visit(saf, 2, [0, 1], z)
    assert alone > 0
    assert beside.item() == pytest.approx(alone.item() / 2, rel=1e-14)


def test_logits_of_an_earlier_round_through_the_slots_do_not_count():
    saf = always()
    visit(saf, 1, [0, 1], rows(2))
    for epoch in (2, 3, 4):
        visit(saf, epoch, [1], rows(1))
    z = rows(2, seed=1).requires_grad_()
    visit(saf, 6, [0, 1], z).backward()  # epoch 4 has the slot that epoch 1 had
    assert not z.grad[0].any() and z.grad[1].any()


def test_an_epoch_that_is_gone_on_with_keeps_what_it_has():
    saf = always()
    visit(saf, 0, [0], rows(1))
    saf.set_epoch(0)
    assert visit(saf, 2, [0], rows(1, seed=1)) > 0


def test_epoch_0_needs_no_set_epoch():
    saf = always()
    saf.penalty(torch.tensor([0]), rows(1))
    saf.set_epoch(0)
    assert visit(saf, 2, [0], rows(1, seed=1)) > 0


def test_equal_logits_are_no_reason_to_move():
    saf, z = always(), rows().requires_grad_()
    visit(saf, 0, range(N), z.detach())
    term = visit(saf, 2, range(N), z)
    term.backward()
    assert term.abs() <= 1e-16 and z.grad.abs().max() <= 1e-16


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


def test_a_row_that_is_not_finite_is_not_stored():
    """In the dtype of the table; what an earlier visit of the epoch stored stays."""
    saf = always(dtype=torch.float16)
    past, wrong = rows(2), rows(2, seed=1)
    wrong[0, 1], wrong[1, 2] = float("nan"), 1e5
    visit(saf, 0, [0, 1], past)
    assert visit(saf, 0, [0, 1], wrong) == 0
    z = rows(2, seed=2)
    value, _ = expected(dict(zip([(0, 0), (1, 0)], past.half().double(), strict=True)), saf, 2, [0, 1], z)
    assert visit(saf, 2, [0, 1], z).item() == pytest.approx(value, rel=1e-12)

    visit(saf, 3, [0, 1], wrong)  # and if nothing was stored, there is no term
    z = rows(2, seed=2).requires_grad_()
    visit(saf, 5, [0, 1], z).backward()
    assert not z.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_logits_of_few_bits_are_compared_in_float32(dtype):
    saf, exact = always(dtype=torch.float32), always()
    z = [rows(seed=seed, dtype=dtype) for seed in (0, 1)]
    with torch.autocast("cpu", torch.bfloat16):
        visit(saf, 0, range(N), z[0])
        term = visit(saf, 2, range(N), z[1])
    visit(exact, 0, range(N), z[0].double())
    assert term.dtype == torch.float32
    assert term.item() == pytest.approx(visit(exact, 2, range(N), z[1].double()).item(), rel=1e-5)


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


@pytest.mark.parametrize("on_table", [torch.int32, torch.int64])
def test_any_device_and_index(device, on_table):
    """The table beside the logits, and on the CPU."""
    index, z = torch.arange(N, dtype=on_table), [rows(seed=seed) for seed in (0, 1)]
    on_cpu = always()
    tables = [always(device=device), always(device="cpu")]
    visit(on_cpu, 0, range(N), z[0])
    expected = visit(on_cpu, 2, range(N), z[1])
    for saf in tables:
        for at in (index, index.to(device)):
            for epoch, logits in ((0, z[0]), (2, z[1])):
                saf.set_epoch(epoch)
                term = saf.penalty(at, logits.to(device))
            assert term.device.type == device
            torch.testing.assert_close(term.cpu(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("wrong", [[-1, 0], [0, N], [2**40, 1]])
def test_an_index_outside_the_table(wrong):
    saf = always()
    visit(saf, 0, [0, 1], rows(2))
    before = copy.deepcopy(saf.state_dict())
    with pytest.raises(IndexError, match=rf"index: .* outside the table of {N} samples"):
        saf.penalty(torch.tensor(wrong), rows(2))
    assert_same_state(saf.state_dict(), before)


@pytest.mark.parametrize("then", ["set_epoch", "state_dict"])
def test_an_index_outside_the_table_of_a_gpu_is_told_later(device, then):
    """On the CPU: what comes after the check that a GPU does not make."""
    saf, index = always(device=device), torch.tensor([-1, 3, N, N + 7], device=device)
    saf.set_epoch(0)
    saf._table.store(0, torch.arange(N, device=device), rows().to(device))
    before = saf._table._rows.clone()
    index = saf._table.reachable(index)
    saf._table.store(0, index, torch.cat([rows(1, seed=1), rows()[3:4], rows(2, seed=2)]).to(device))
    assert_same_state(saf._table._rows, before)
    with pytest.raises(IndexError, match=r"index: 3 entries .* outside the table"):
        saf.set_epoch(2) if then == "set_epoch" else saf.state_dict()
    saf.set_epoch(2)  # told once
    past = saf._table.at(0, index)
    assert past.isnan().all(1).tolist() == [True, False, True, True]


def test_memory():
    """50,000 samples of 100 classes, a delay of 3: 80 MB in float32, 40 in float16."""
    for dtype, size in ((torch.float32, 80e6), (torch.float16, 40e6)):
        saf = SAF(50_000, 100, device="meta", dtype=dtype)
        assert saf._table._rows.nbytes == pytest.approx(size, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples: expected an integer at least 1, got 0"),
        ({"num_classes": 1}, ValueError, "num_classes: expected an integer at least 2, got 1"),
        ({"num_classes": 2.5}, TypeError, "num_classes: expected an integer"),
        ({"lam": -1}, ValueError, "lam: expected a finite number not below 0, got -1"),
        ({"lam": None}, TypeError, "lam: expected a number"),
        ({"tau": 0}, ValueError, "tau: expected a finite number above 0, got 0"),
        ({"delay": 0}, ValueError, "delay: expected an integer at least 1, got 0"),
        ({"start_epoch": -2}, ValueError, "start_epoch: expected an integer at least -1, got -2"),
        ({"dtype": torch.int64}, TypeError, "dtype: expected one of torch.float32, .*got torch.int64"),
        ({"dtype": "float32"}, TypeError, "dtype: expected one of torch.float32, .*got 'float32'"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        SAF(**{"num_samples": N, "num_classes": CLASSES, **options})


@pytest.mark.parametrize(
    ("index", "logits", "error", "message"),
    [
        ([0, 1], rows(2), TypeError, r"index: expected a tensor of int64 or int32, got \[0, 1\]"),
        (torch.zeros(2), rows(2), TypeError, "index: expected a tensor of int64 or int32, got torch.float32"),
        (torch.zeros(2, 1, dtype=torch.int64), rows(2), ValueError, r"index: expected 1 dimension\(s\)"),
        (torch.arange(2), None, TypeError, "logits: expected a tensor"),
        (torch.arange(2), torch.zeros(2, CLASSES, dtype=torch.int64), TypeError, "logits: expected a tensor"),
        (torch.arange(2), rows(2)[None], ValueError, r"logits: expected 2 dimension\(s\)"),
        (
            torch.arange(3),
            rows(2),
            ValueError,
            r"logits: expected a row for each index .*\(3, 4\), got \(2, 4\)",
        ),
        (torch.arange(2), rows(2)[:, :3], ValueError, r"logits: .*each class, \(2, 4\), got \(2, 3\)"),
    ],
)
def test_bad_arguments(index, logits, error, message):
    saf = always()
    before = copy.deepcopy(saf.state_dict())
    with pytest.raises(error, match=message):
        saf.penalty(index, logits)
    with pytest.raises(ValueError, match="epoch: expected an integer at least 0, got -1"):
        saf.set_epoch(-1)
    assert_same_state(saf.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"version": 9}, ValueError, "version: expected 1, got 9"),
        ({"method": "MESA"}, ValueError, "method: expected SAF, got a state of MESA"),
        ({"epoch": -1}, ValueError, "epoch: expected an integer at least 0, got -1"),
        ({"logits": torch.zeros(N - 1, 3, CLASSES).double()}, ValueError, r"logits: .*got \(22, 3, 4\)"),
        ({"logits": torch.zeros(N, 3, CLASSES)}, TypeError, "logits: expected a tensor of float64"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, error, message):
    saf, other = always(), always()
    visit(saf, 4, [0, 1], rows(2))
    before = copy.deepcopy(saf.state_dict())
    with pytest.raises(error, match=message):
        saf.load_state_dict({**other.state_dict(), **change})
    for name in before:
        state = other.state_dict()
        del state[name]
        with pytest.raises(KeyError, match=name):
            saf.load_state_dict(state)
    assert_same_state(saf.state_dict(), before)
