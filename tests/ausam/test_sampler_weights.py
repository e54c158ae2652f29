"""AUSAMBatchSampler.weights(): those of the scores and the noise that chose a batch, whenever it is asked."""

import pytest
import torch
from ausam.tables import N, dataset, pretend_losses, scored
from helpers import same_bits
from torch.utils.data import DataLoader

import ausam_ext.sampler
from ausam_ext import ADLP, SAM, AUSAMBatchSampler, ops, reference
from ausam_ext.indexed_loader import IndexedLoader

OPTIONS = {"batch_size": 32, "alpha": 0.4, "warmup_epochs": 3, "seed": 11, "full_epochs": 1}


RACING = {**OPTIONS, "full_epochs": 0}  # so that some samples stay without a visit


def seen_by_the_race(adlp, index):
    """A sample whose losses were never finite scores 0, one never visited NaN."""
    mean = adlp.mean(index)
    mean[(adlp.count[index] == 0) & (adlp.tried[index] == 1)] = 0
    return mean


def table():
    """As after some epochs, in which some samples were not visited and some had no finite loss."""
    adlp = scored()
    adlp.tried[(adlp.count == 0) & (torch.arange(N) % 2 == 0)] = 1
    assert adlp.tried.any() and ((adlp.count == 0) & (adlp.tried == 0)).any()
    return adlp


def oracle(adlp, monkeypatch, epoch, options=RACING):
    """What should be weighed, batch by batch: the reference on the table as it is before each batch, with the
    noise of ``select``. Ends with the table of that epoch's beginning."""
    batches = AUSAMBatchSampler(adlp, **options)
    candidates = AUSAMBatchSampler(adlp, **{**options, "alpha": 1.0})
    for b in (batches, candidates):
        b.set_epoch(epoch)
    calls, weights, sample = [], [], ADLP.sample

    def spy(self, index, k, **race):
        calls.append((index, race))
        return sample(self, index, k, **race)

    with monkeypatch.context() as patch:
        patch.setattr(ADLP, "sample", spy)
        for row in candidates:
            row = torch.tensor(row)
            calls.clear()
            keep = batches.select(row)
            if calls:
                weights.append(
                    reference.subset_weights(
                        seen_by_the_race(adlp, row),
                        keep,
                        calls[0][1]["noise"],
                        s_min=calls[0][1]["s_min"],
                        s_max=calls[0][1]["s_max"],
                    )
                )
            else:
                weights.append(torch.ones(len(row)))
            adlp.update(row[keep], *pretend_losses(row[keep], epoch))
    return weights


def assert_weights(got, expected, normalize):
    assert got.dtype == torch.float32
    if normalize:
        expected = expected / expected.mean()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("when", ["before update", "after update", "both"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("workers", "block"), [(0, 1 << 20), (2, 1 << 20), (0, 64)])
def test_planned_batches(backend, monkeypatch, workers, block, normalize, when):
    monkeypatch.setattr(ausam_ext.sampler, "_PLAN_BLOCK", block)
    adlp, other = table(), table()
    batches = AUSAMBatchSampler(adlp, **RACING)
    loader = DataLoader(
        dataset(), batch_sampler=batches, num_workers=workers, prefetch_factor=4 if workers else None
    )
    for epoch in range(3):
        expected = oracle(other, monkeypatch, epoch)
        batches.set_epoch(epoch)
        for (index, _), w in zip(batches.indexed(loader), expected, strict=True):
            if when != "after update":
                assert_weights(batches.weights(index, normalize=normalize), w, normalize)
            adlp.update(index, *pretend_losses(index, epoch))
            if when != "before update":
                assert_weights(batches.weights(index, normalize=normalize), w, normalize)
    assert (w != 1).any()


@pytest.mark.parametrize("normalize", [True, False])
def test_batches_chosen_in_the_loop(backend, monkeypatch, normalize):
    adlp, other = table(), table()
    batches = AUSAMBatchSampler(adlp, **RACING)
    whole = AUSAMBatchSampler(ADLP(N), **{**RACING, "alpha": 1.0})
    for epoch in range(3):
        expected = oracle(other, monkeypatch, epoch)
        for b in (batches, whole):
            b.set_epoch(epoch)
        for row, w in zip(whole, expected, strict=True):
            index = torch.tensor(row)
            index = index[batches.select(index)]
            adlp.update(index, *pretend_losses(index, epoch))
            assert_weights(batches.weights(index, normalize=normalize), w, normalize)


def test_what_the_table_becomes_in_between_does_not_show():
    """Visits of other samples, a merge or another state: the batch was chosen before."""
    weights = []
    for meddle in (False, True):
        adlp = scored()
        batches = AUSAMBatchSampler(adlp, **OPTIONS, drop_last=True)  # all are planned at the beginning
        batches.set_epoch(2)
        loader = DataLoader(dataset(), batch_sampler=batches)
        for index, _ in batches.indexed(loader):
            if meddle:
                adlp.total.fill_(7)
                adlp.count.fill_(1)
            weights.append(batches.weights(index))
    half = len(weights) // 2
    assert all(map(same_bits, weights[:half], weights[half:]))


@pytest.mark.parametrize("stop", [1, 4])
def test_resumed_within_an_epoch(stop):
    def run(batches, adlp, ask_from, until=None):
        loader = DataLoader(dataset(), batch_sampler=batches, num_workers=1, prefetch_factor=3)
        out = []
        for i, (index, _) in enumerate(batches.indexed(loader)):
            adlp.update(index, *pretend_losses(index, 2))
            if i >= ask_from:
                out.append(batches.weights(index))
            if i + 1 == until:
                break
        return out

    adlp = scored()
    batches = AUSAMBatchSampler(adlp, **OPTIONS)
    batches.set_epoch(2)
    full = run(batches, adlp, 0)
    adlp = scored()
    batches = AUSAMBatchSampler(adlp, **OPTIONS)
    batches.set_epoch(2)
    run(batches, adlp, N, stop)
    resumed = AUSAMBatchSampler(adlp, **OPTIONS)
    resumed.load_state_dict(batches.state_dict())
    rest = run(resumed, adlp, 0)
    assert len(rest) == len(full) - stop and all(map(same_bits, rest, full[stop:]))


def test_each_process_weighs_its_own():
    for rank in range(3):
        batches = AUSAMBatchSampler(scored(), 16, 0.5, rank=rank, num_replicas=3, full_epochs=0)
        batches.set_epoch(5)
        for index, _ in batches.indexed(DataLoader(dataset(), batch_sampler=batches)):
            w = batches.weights(index)
            assert w.shape == index.shape and w.mean().item() == pytest.approx(1, abs=1e-6)


def test_until_the_next_batch_is_handed_out():
    adlp = scored()
    batches = AUSAMBatchSampler(adlp, **OPTIONS)
    with pytest.raises(RuntimeError, match=r"weights\(\): neither indexed\(\) nor select\(\) has handed out"):
        batches.weights(torch.arange(3))
    batches.set_epoch(1)
    last = None
    for index, _ in batches.indexed(DataLoader(dataset(), batch_sampler=batches)):
        if last is not None:
            with pytest.raises(ValueError, match=r"index: expected the batch that .* handed out last"):
                batches.weights(last)
        w = batches.weights(index)
        assert same_bits(batches.weights(index.clone()), w) and same_bits(batches.weights(index.int()), w)
        with pytest.raises(ValueError, match="index: expected the batch"):
            batches.weights(index.flip(0))
        with pytest.raises(ValueError, match="index: expected the batch"):
            batches.weights(index[:-1])
        with pytest.raises(TypeError, match="index: expected a tensor of int64 or int32, got"):
            batches.weights(index.float())
        with pytest.raises(TypeError, match="normalize: expected True or False, got 1"):
            batches.weights(index, normalize=1)
        last = index
    assert same_bits(batches.weights(last), w)  # after the loop as well
    fresh = AUSAMBatchSampler(adlp, **OPTIONS)
    fresh.set_epoch(1)
    candidates = torch.arange(32)
    keep = fresh.select(candidates)
    with pytest.raises(ValueError, match="index: expected the batch"):
        fresh.weights(candidates)
    first = candidates[keep]
    fresh.weights(first)
    fresh.select(candidates + 32)
    with pytest.raises(ValueError, match="index: expected the batch"):
        fresh.weights(first)
    fresh.load_state_dict(fresh.state_dict())
    with pytest.raises(RuntimeError, match="has handed out"):
        fresh.weights(first)


def test_the_callers_tensor_is_its_own():
    batches = AUSAMBatchSampler(scored(), **OPTIONS)
    batches.set_epoch(1)
    for index, _ in batches.indexed(DataLoader(dataset(), batch_sampler=batches)):
        w = batches.weights(index)
        again = w.clone()
        w.zero_()
        assert same_bits(batches.weights(index), again)


def test_a_block_is_weighed_in_one_call_and_only_if_someone_asks(monkeypatch):
    calls, weigh = [], ops.subset_weights
    monkeypatch.setattr(ops, "subset_weights", lambda *a, **o: calls.append(a[0].shape) or weigh(*a, **o))
    batches = AUSAMBatchSampler(scored(), **OPTIONS)
    loader = IndexedLoader(DataLoader(dataset(), batch_sampler=batches))
    for epoch, ask in ((0, True), (1, False), (2, True)):
        calls.clear()
        for index, _ in loader:
            if ask:
                w = batches.weights(index)
                assert epoch > 0 or torch.equal(w, torch.ones(len(index)))  # whole batches
        assert calls == ([(6, 32), (1, 11)] if epoch == 2 else [])


def test_the_weighted_mean_is_that_of_the_whole_batch():
    """Over many epochs; the plain mean of what is kept is not."""
    adlp = ADLP(64)
    f = torch.rand(64, generator=torch.Generator().manual_seed(1)) ** 3
    adlp.update(torch.arange(64), torch.zeros(64), f)
    batches = AUSAMBatchSampler(adlp, 64, 0.5, warmup_epochs=0, full_epochs=0)
    estimates = {"plain": [], "weighted": [], "normalised": []}
    for epoch in range(4000):
        batches.set_epoch(epoch)
        index = torch.arange(64)
        index = index[batches.select(index)]
        estimates["plain"].append(f[index].mean())
        estimates["weighted"].append((batches.weights(index, normalize=False) * f[index]).mean())
        estimates["normalised"].append((batches.weights(index) * f[index]).mean())
    error = {}
    for name, values in estimates.items():
        values = torch.stack(values)
        error[name] = (values.mean() - f.mean()).abs() / (values.std() / len(values) ** 0.5)
    assert error["weighted"] < 4 < 50 < error["plain"]
    bias = {name: abs(torch.stack(v).mean() - f.mean()) for name, v in estimates.items()}
    assert bias["normalised"] < bias["plain"] / 10


def test_weighted_loop_trains_with_sam():
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 10)
    sam, adlp = SAM(model, rho=0.05), ADLP(N)
    batches = AUSAMBatchSampler(adlp, 32)
    loader = DataLoader(dataset(), batch_sampler=batches)
    for epoch in range(3):
        batches.set_epoch(epoch)
        for index, (x, _) in batches.indexed(loader):

            def losses(x=x):
                return torch.nn.functional.cross_entropy(model(x[:, None] / N), x % 10, reduction="none")

            loss = losses()
            (loss * batches.weights(index)).mean().backward()
            with sam.perturbed():
                loss_perturbed = losses()
                (loss_perturbed * batches.weights(index)).mean().backward()
            adlp.update(index, loss, loss_perturbed)
            model.zero_grad()
    assert (adlp.count > 0).all()
