"""SAF: each sample is held to its logits of some epochs ago."""

import copy
import random

import pytest
import torch
from baselines.past_logits import CLASSES, N, always, rows, visit

from ausam_ext.baselines import SAF


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


def test_memory():
    """50,000 samples of 100 classes, a delay of 3: 80 MB in float32, 40 in float16."""
    for dtype, size in ((torch.float32, 80e6), (torch.float16, 40e6)):
        saf = SAF(50_000, 100, device="meta", dtype=dtype)
        assert saf._table._rows.nbytes == pytest.approx(size, rel=1e-4)
