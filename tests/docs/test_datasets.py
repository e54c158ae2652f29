"""The recipes of docs/data.md: data sets and loaders of every kind, views and mixtures."""

import re

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from ausam_ext import ADLP, AUSAMBatchSampler

N = 100


def dataset(n=N):
    return TensorDataset(torch.arange(n) * 10, torch.arange(n) % 3)


def record(adlp, index):
    adlp.update(index, torch.zeros(len(index)), index / N)


def test_stack_dataset_through_the_batch_sampler():
    """Named inputs arrive as a dict."""
    adlp = ADLP(N)
    batches = AUSAMBatchSampler(adlp, 16, full_epochs=0)
    loader = DataLoader(
        StackDataset(image=dataset(), place=torch.arange(N)), batch_sampler=batches, num_workers=1
    )
    for index, batch in batches.indexed(loader):
        assert torch.equal(index, batch["place"]) and torch.equal(batch["image"][0], index * 10)
        record(adlp, index)
    assert adlp.count.sum() == 6 * 8 + 2


def test_subset_counts_in_its_own_positions():
    chosen = torch.randperm(N)[:41].tolist()
    subset = Subset(dataset(), chosen)
    adlp = ADLP(len(subset))
    batches = AUSAMBatchSampler(adlp, 16)
    for index, (x, _) in batches.indexed(DataLoader(subset, batch_sampler=batches)):
        assert x.tolist() == [chosen[i] * 10 for i in index]
        record(adlp, index)
    assert adlp.count.tolist() == [1] * 41


def test_weighted_random_sampler_with_select():
    """Samples come twice in an epoch, or in a batch, and their scores follow at once."""
    adlp, weights = ADLP(N), torch.arange(N) + 1.0
    batches = AUSAMBatchSampler(adlp, 16)
    sampler = WeightedRandomSampler(weights, N, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(StackDataset(dataset(), range(N)), batch_size=16, sampler=sampler)
    with pytest.raises(ValueError, match=r"batch_sampler=.*select\(\)"):
        batches.indexed(loader)
    for epoch in range(3):
        batches.set_epoch(epoch)
        for (x, _), index in loader:
            keep = batches.select(index)
            assert len(keep) == (len(index) if epoch == 0 else len(index) // 2)
            assert torch.equal(x[keep], index[keep] * 10)
            record(adlp, index[keep])
    assert adlp.count.sum() == N + 2 * (6 * 8 + 2)
    assert adlp.count.max() > 3 and adlp.count[N // 2 :].sum() > 2 * adlp.count[: N // 2].sum()


class Stream(IterableDataset):
    def __iter__(self):
        for i in range(N):
            yield (torch.tensor(i * 10), i % 3), i


def test_iterable_dataset_with_select():
    adlp = ADLP(N)
    batches = AUSAMBatchSampler(adlp, 16)
    loader = DataLoader(Stream(), batch_size=16)
    with pytest.raises(ValueError, match=r"IterableDataset.*select\(\)"):
        batches.indexed(loader)
    for epoch in range(2):
        batches.set_epoch(epoch)
        for (x, _), index in loader:
            keep = batches.select(index)
            assert torch.equal(x[keep], index[keep] * 10)
            record(adlp, index[keep])
    assert adlp.count.sum() == N + 6 * 8 + 2


def test_a_collate_function_that_drops_samples_is_noticed_when_losses_are_recorded():
    adlp = ADLP(N)
    batches = AUSAMBatchSampler(adlp, 16)

    def even_ones(samples):
        return torch.stack([x for x, _ in samples if x % 20 == 0])

    loader = DataLoader(dataset(), batch_sampler=batches, collate_fn=even_ones)
    index, x = next(iter(batches.indexed(loader)))
    with pytest.raises(ValueError, match=r"loss: expected one for each index, shape \(16,\).*another batch"):
        adlp.update(index, x.float(), x + 1.0)


RECIPES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("recipe", range(1, len(RECIPES)))
def test_the_recipes_run_as_they_stand(recipe):
    """The first one holds what all others begin with."""
    namespace: dict = {"__name__": "recipe"}
    exec(compile(RECIPES[0] + RECIPES[recipe], "docs/data.md", "exec"), namespace)
    adlp = namespace["adlp"]
    assert adlp.count.sum() > len(adlp) and adlp.total.sum() > 0


def test_several_views_give_one_loss_a_sample():
    """The mean over views, recorded once for each index: not the views of one sample as visits of others."""
    index, views = torch.tensor([4, 9]), torch.tensor([[1.0, 2.0], [3.0, 6.0]])  # [views, samples]
    adlp = ADLP(N)
    adlp.update(index, torch.zeros(2), views.flatten().view(2, -1).mean(0))
    assert adlp.mean(index).tolist() == [2, 4]


def test_mixup_losses_belong_to_the_first_sample():
    logits, y, order, share = torch.randn(8, 3), torch.arange(8) % 3, torch.arange(7, -1, -1), 0.7
    both = share * F.cross_entropy(logits, y, reduction="none")
    both += (1 - share) * F.cross_entropy(logits, y[order], reduction="none")
    soft = share * F.one_hot(y, 3) + (1 - share) * F.one_hot(y[order], 3)
    torch.testing.assert_close(both, F.cross_entropy(logits, soft, reduction="none"))
