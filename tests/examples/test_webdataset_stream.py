"""WebDataset: the weights of a loop by hand over the same stream; each key belongs to its sample."""

import pytest
import torch
from torch import nn

from ausam_ext import ADLP, SAM, AUSAMBatchSampler

# webdataset 1.0 leaves closing the tar files to Python.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

EPOCHS = 3


@pytest.fixture
def folder(example, tmp_path):
    assert example.write_shards(tmp_path) == 1797
    return tmp_path


def test_each_epoch_has_every_sample_once_with_its_number(example, folder):
    x, y = map(torch.tensor, example.load_digits(return_X_y=True))
    stream, orders = example.make_stream(folder), []
    for _ in range(2):
        seen = [tuple(map(torch.as_tensor, batch)) for batch in stream]
        index, images, labels = map(torch.cat, zip(*seen, strict=True))
        assert torch.equal(index.sort().values, torch.arange(1797))
        assert torch.equal(images, (x[index] / 16).float()) and torch.equal(labels, y[index])
        orders.append(index)
    assert not torch.equal(*orders)


def test_weights_are_those_of_a_loop_by_hand(example, folder, by_hand):
    torch.manual_seed(0)
    theirs, table = example.train(example.make_stream(folder), 1797, EPOCHS)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    adlp, stream = ADLP(1797), example.make_stream(folder)
    batches = AUSAMBatchSampler(adlp, batch_size=64, epochs=EPOCHS, warmup_epochs=0.3)

    def steps():
        for epoch in range(EPOCHS):
            batches.set_epoch(epoch)
            for batch in stream:
                index, x, y = map(torch.as_tensor, batch)
                keep = batches.select(index)
                yield index[keep], x[keep], y[keep]

    by_hand(model, optimizer, SAM(model, rho=0.05), steps(), adlp)
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), model.parameters(), strict=True))
    assert torch.equal(table.total, adlp.total) and adlp.count.sum() == 1797 + 2 * (28 * 32 + 2)


def test_a_batch_sampler_is_refused(example, folder):
    batches = AUSAMBatchSampler(ADLP(1797), 64)
    with pytest.raises(ValueError, match="loader"):
        batches.indexed(example.wds.WebLoader(example.make_stream(folder), batch_size=None))
