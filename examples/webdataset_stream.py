"""WebDataset: AUSAM on samples that are read from tar files one after the other.

Such a data set takes no batch sampler. The bridge: each sample's key is its number, which the pipeline
hands on, and `batches.select` chooses within the loop, from a batch that is loaded whole. For SAM or vSAM
nothing is needed.
"""

import io
import random
import tarfile
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
import webdataset as wds
from sklearn.datasets import load_digits
from torch import nn

from ausam_ext import ADLP, SAM, AUSAMBatchSampler


def write_shards(folder, shards=4):
    x, y = load_digits(return_X_y=True)
    for shard in range(shards):
        with tarfile.open(Path(folder) / f"digits-{shard}.tar", "w") as tar:
            for i in range(shard, len(y), shards):
                image = io.BytesIO()
                torch.save(torch.tensor(x[i] / 16, dtype=torch.float32), image)
                for name, data in ((f"{i}.pth", image.getvalue()), (f"{i}.cls", str(y[i]).encode())):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    return len(y)


def make_stream(folder, shards=4):
    urls = f"{folder}/digits-{{0..{shards - 1}}}.tar"
    stream = wds.WebDataset(urls, shardshuffle=False).shuffle(500, rng=random.Random(0)).decode()
    return stream.to_tuple("__key__", "pth", "cls").map_tuple(int, None, None).batched(64)


def train(stream, samples, epochs=5):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sam, adlp = SAM(model, rho=0.05), ADLP(samples)
    batches = AUSAMBatchSampler(adlp, batch_size=64, epochs=epochs, warmup_epochs=0.3)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for index, x, y in wds.WebLoader(stream, batch_size=None):
            keep = batches.select(index)
            index, x, y = index[keep], x[keep], y[keep]
            loss = F.cross_entropy(model(x), y, reduction="none")
            loss.mean().backward()
            with sam.perturbed():
                loss_perturbed = F.cross_entropy(model(x), y, reduction="none")
                loss_perturbed.mean().backward()
            adlp.update(index, loss, loss_perturbed)
            optimizer.step()
            optimizer.zero_grad()
    return model, adlp


if __name__ == "__main__":
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        samples = write_shards(folder)
        model, adlp = train(make_stream(folder), samples)
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    right = model(x.float() / 16).argmax(1) == y
    visits = adlp.count.float().mean()
    print(f"accuracy {right.float().mean():.3f}, visits of a sample {visits:.1f} in 5 epochs")
