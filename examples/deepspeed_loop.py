"""DeepSpeed without ZeRO (stage 0): SAM around `engine.backward()`, with accumulation and clipping.

The bridge is `with sam.perturbed()`, and a SAM that is made with the engine. `one_pass` takes all
micro-batches of a step and tells the engine which is the last, after which it averages over the processes.
`engine.step()` clips the gradient, once. From ZeRO's stage 1 on no gradient is in `.grad`, and SAM refuses.
Start it with `deepspeed examples/deepspeed_loop.py`, or with `python` for one process.
"""

import os

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ausam_ext import SAM


def make_data():
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))


def make_model():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def one_pass(engine, micro_batches):
    losses = []
    for i, (x, y) in enumerate(micro_batches):
        engine.set_gradient_accumulation_boundary(i == len(micro_batches) - 1)
        losses.append(F.cross_entropy(engine(x), y))
        engine.backward(losses[-1])
    return torch.stack(losses).detach().mean()


def train(model, dataset, epochs=5, micro_batch=16, accumulation=4, clip=1.0):
    config = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "zero_optimization": {"stage": 0},
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    sam = SAM(engine, rho=0.05)
    sampler = DistributedSampler(dataset, seed=0)
    loader = DataLoader(dataset, batch_size=micro_batch, sampler=sampler, drop_last=True)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        kept = []
        for x, y in loader:
            kept.append((x.to(engine.device), y.to(engine.device)))
            if len(kept) < accumulation:
                continue
            loss = one_pass(engine, kept)
            with sam.perturbed():
                one_pass(engine, kept)
            engine.step()
            kept = []
    return loss


if __name__ == "__main__":
    if "RANK" not in os.environ:  # started by `python`
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed(verbose=False)
    torch.manual_seed(0)
    dataset, model = make_data(), make_model()
    loss = train(model, dataset)
    x, y = dataset.tensors
    device = next(model.parameters()).device
    right = model(x.to(device)).argmax(1) == y.to(device)
    if dist.get_rank() == 0:
        print(f"loss {loss:.3f}, accuracy {right.float().mean():.3f}")
    dist.destroy_process_group()
