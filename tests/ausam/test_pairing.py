"""indexed() gives each batch its own index, or says why it cannot."""

from itertools import islice

import pytest
import torch
from ausam.tables import N, dataset, scored
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from ausam_ext import AUSAMBatchSampler
from ausam_ext.indexed_loader import IndexedLoader


def sampler(**options):
    return AUSAMBatchSampler(scored(), **{"batch_size": 32, "full_epochs": 0, **options})


def assert_paired(pairs):
    for index, (x, y) in pairs:
        assert torch.equal(index, x) and torch.equal(y, x * 10)


@pytest.mark.parametrize("persistent", [False, True])
def test_what_an_abandoned_loop_prefetched_disturbs_nobody(persistent):
    batches = sampler()
    loader = DataLoader(
        dataset(), batch_sampler=batches, num_workers=2, prefetch_factor=2, persistent_workers=persistent
    )
    abandoned = iter(batches.indexed(loader))  # kept alive, with its workers
    assert_paired(islice(abandoned, 1))
    rest = list(batches.indexed(loader))
    assert len(rest) == len(batches) - 1
    assert_paired(rest)
    assert_paired(islice(batches.indexed(loader), 3))
    with pytest.raises(RuntimeError, match="another one began"):
        next(abandoned)
    assert_paired(batches.indexed(loader))
    assert batches.epoch == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_framework_can_have_it_as_its_loader(workers):
    """One that loops over what it was given once an epoch, and asks how long an epoch is."""
    batches = sampler(full_epochs=1)
    loader = batches.indexed(DataLoader(dataset(), batch_sampler=batches, num_workers=workers))
    assert isinstance(loader, IndexedLoader) and loader.sampler is batches
    seen = []
    for _ in range(3):
        pairs = list(loader)
        assert len(pairs) == len(loader) == 7
        assert_paired(pairs)
        seen.append([index.tolist() for index, _ in pairs])
    twin = sampler(full_epochs=1)
    for epoch, rows in enumerate(seen):
        twin.set_epoch(epoch)
        assert rows == list(twin)
    with pytest.raises(TypeError, match="not an iterator"):
        next(loader)


def test_a_loop_that_was_left_is_gone_on_with():
    batches = sampler()
    loader = IndexedLoader(DataLoader(dataset(), batch_sampler=batches))
    assert_paired(islice(loader, 3))
    resumed = sampler()
    again = IndexedLoader(DataLoader(dataset(), batch_sampler=resumed))
    again.load_state_dict(loader.state_dict())
    assert [index.tolist() for index, _ in again] == [index.tolist() for index, _ in loader]
    assert resumed.epoch == batches.epoch == 1


@pytest.mark.parametrize("loader", [[1, 2], DataLoader(dataset(), batch_size=8)])
def test_a_loader_without_one_of_our_samplers(loader):
    with pytest.raises(TypeError, match="loader: expected a DataLoader made with batch_sampler="):
        IndexedLoader(loader)


def test_two_loops_at_once():
    batches = sampler()
    first, second = (iter(batches.indexed(DataLoader(dataset(), batch_sampler=batches))) for _ in range(2))
    assert_paired(islice(first, 2))
    assert_paired(islice(second, 1))
    with pytest.raises(RuntimeError, match=r"another one began.*leave a loop first"):
        next(first)
    assert_paired(second)
    assert batches.epoch == 1


def test_looking_at_batches_within_a_loop_is_no_second_loop():
    batches = sampler()
    loader = DataLoader(dataset(), batch_sampler=batches)
    for i, (index, (x, _)) in enumerate(batches.indexed(loader), 1):
        assert torch.equal(index, x)
        assert len(list(batches)) == len(list(loader)) == len(batches) - i
    assert batches.epoch == 1


@pytest.mark.parametrize(
    "change", [lambda b: b.set_epoch(7), lambda b: b.load_state_dict({**b.state_dict(), "position": 0})]
)
def test_epoch_or_state_set_within_a_loop(change):
    batches = sampler()
    loop = iter(batches.indexed(DataLoader(dataset(), batch_sampler=batches)))
    next(loop)
    change(batches)
    with pytest.raises(RuntimeError, match="the epoch or the state was set"):
        next(loop)
    assert batches.state_dict()["position"] == 0  # as it was set


def test_the_next_epoch_may_be_set_at_the_last_batch():
    batches = sampler()
    for i, _ in enumerate(batches.indexed(DataLoader(dataset(), batch_sampler=batches)), 1):
        if i == len(batches):
            batches.set_epoch(9)
    assert batches.epoch == 9


@pytest.mark.filterwarnings("ignore:.*in_order")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_in_another_order(workers):
    batches = sampler()
    loader = DataLoader(dataset(), batch_sampler=batches, num_workers=workers, in_order=False)
    with pytest.raises(ValueError, match=r"in_order=True"):
        batches.indexed(loader)


@pytest.mark.parametrize("n", [N - 1, N + 1])
def test_a_data_set_of_another_length_than_the_table(n):
    """What lies beyond a shorter table would never be trained on."""
    batches = sampler()
    loader = DataLoader(TensorDataset(torch.arange(n)), batch_sampler=batches)
    with pytest.raises(ValueError, match=rf"loader: expected a data set of {N} samples.*got {n}"):
        batches.indexed(loader)


def test_choosing_once_more_within_a_loop_whose_batches_are_chosen():
    batches = sampler()
    for index, _ in batches.indexed(DataLoader(dataset(), batch_sampler=batches)):
        with pytest.raises(RuntimeError, match=r"select\(\): inside a loop over indexed\(\)"):
            batches.select(index)
        break
    batches.set_epoch(1)
    assert len(batches.select(torch.arange(32))) == 16


def test_select_without_set_epoch_warns_once_an_epoch_that_is_kept_whole():
    batches = sampler(full_epochs=1)
    rows = list(torch.arange(N).split(32))
    for row in rows:
        batches.select(row)
    with pytest.warns(UserWarning, match=r"call 8 in epoch 0.*call set_epoch\(\)"):
        batches.select(rows[0])
    batches.select(rows[1])
    batches.set_epoch(1)
    for _ in range(3 * len(rows)):
        assert len(batches.select(rows[0])) == 16


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_loop_that_sets_the_epoch_may_draw_more_than_there_are_samples(epochs):
    batches = sampler(full_epochs=2)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for _ in range(3 * len(batches)):
            batches.select(torch.arange(32))


def train_plainly(batches, loader, record=True):
    """As a framework that is given the loader: the index comes with the data."""
    for x, _ in loader:
        if record:
            batches.adlp.update(x, torch.zeros(len(x)), torch.rand(len(x)))


BEGINS_ONCE_MORE = r"epoch 0 begins once more.*set_epoch\(\) before each epoch, or loop over indexed"


@pytest.mark.parametrize("full_epochs", [0, 1])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loop_without_set_epoch_is_warned_of(full_epochs, workers):
    batches = sampler(full_epochs=full_epochs)
    loader = DataLoader(dataset(), batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0)
    train_plainly(batches, loader)
    for _ in range(2):
        with pytest.warns(UserWarning, match=BEGINS_ONCE_MORE):
            train_plainly(batches, loader)
    batches.set_epoch(1)
    train_plainly(batches, loader)


def test_plain_loops_that_record_nothing_or_leave_each_epoch_are_warned_of_too():
    batches = sampler()
    loader = DataLoader(dataset(), batch_sampler=batches)
    for _ in range(2):
        train_plainly(batches, loader, record=False)
    with pytest.warns(UserWarning, match=BEGINS_ONCE_MORE):
        train_plainly(batches, loader, record=False)
    batches = sampler()
    loader = DataLoader(dataset(), batch_sampler=batches)
    train_plainly(batches, islice(loader, 3))
    with pytest.warns(UserWarning, match=BEGINS_ONCE_MORE):
        train_plainly(batches, islice(loader, 3))


def test_plain_loops_that_are_as_they_should_be_are_not_warned_of():
    batches = sampler()
    loader = DataLoader(dataset(), batch_sampler=batches)
    assert list(batches) == list(loader.batch_sampler)  # a look at them
    for _ in range(3):  # indexed() sets the epoch, and what is looked at meanwhile is the rest of it
        for index, _ in batches.indexed(loader):
            batches.adlp.update(index, torch.zeros(len(index)), torch.rand(len(index)))
            list(batches)
        for _ in range(3):  # evaluation
            list(loader)
    batches = sampler()
    loader, other = (DataLoader(dataset(), batch_sampler=batches) for _ in range(2))
    for epoch in range(3):
        batches.set_epoch(epoch)
        train_plainly(batches, loader)
        list(other)


class Shard(BatchSampler):
    """As Accelerate's: every second batch of another sampler's."""

    def __init__(self, batch_sampler):
        self.batch_sampler = batch_sampler

    def __iter__(self):
        return islice(self.batch_sampler, 0, None, 2)

    def __len__(self):
        return len(self.batch_sampler) // 2


@pytest.mark.parametrize(
    "replaced",
    [
        lambda b: DataLoader(dataset(), batch_sampler=Shard(b)),
        lambda b: DataLoader(dataset(), batch_sampler=BatchSampler(RandomSampler(range(N)), 32, False)),
        lambda b: DataLoader(dataset(), batch_sampler=sampler()),
        lambda b: DataLoader(dataset(), batch_size=None, sampler=RandomSampler(range(N))),
    ],
)
def test_a_batch_sampler_that_was_replaced(replaced):
    batches = sampler()
    with pytest.raises(ValueError, match=r"batch_sampler=.*framework.*prepare.*select\(\)"):
        batches.indexed(replaced(batches))


class Wrapper:
    """A prepared loader that still shows the batch sampler that it was made with."""

    def __init__(self, loader, change):
        self.loader, self.change = loader, change
        self.batch_sampler = loader.batch_sampler

    def __iter__(self):
        return self.change(self.loader)


def ahead(loader):
    """One batch ahead, as those that mark the last batch are."""
    iterator = iter(loader)
    held = next(iterator)
    for batch in iterator:
        yield held
        held = batch
    yield held


def test_a_wrapper_that_looks_ahead_or_moves_batches_is_welcome():
    batches = sampler()
    loader = DataLoader(dataset(), batch_sampler=batches)
    assert_paired(batches.indexed(Wrapper(loader, ahead)))
    assert_paired(batches.indexed(Wrapper(loader, lambda it: ([t.clone() for t in b] for b in it))))
    assert batches.epoch == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: islice(it, 0, None, 3), r"drawn 3 of this sampler"),
        (lambda it: (half for x, y in it for half in ([x[:8], y[:8]], [x[8:], y[8:]])), "drawn 0"),
        (lambda it: iter([[torch.arange(16)] * 2]), "drawn 0"),  # another process's loader drew it
        (lambda it: islice(it, 3), "ended after batch 3 of the 7"),
    ],
)
def test_a_wrapper_that_leaves_out_adds_or_splits_batches(change, message):
    batches = sampler()
    loader = Wrapper(DataLoader(dataset(), batch_sampler=batches), change)
    with pytest.raises(RuntimeError, match=f"loader: .*{message}"):
        for _ in batches.indexed(loader):
            pass
    assert batches.epoch == 0
