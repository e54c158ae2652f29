"""A short training with AUSAM on compiled kernels: the loss falls, and samples are chosen."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from ausam_ext import ADLP, SAM, AUSAMBatchSampler, backends

assert backends()["cpu"].kernels == "compiled", backends()["cpu"].reason
torch.manual_seed(0)
x = torch.randn(512, 10)
data = TensorDataset(x, (x[:, 0] > 0).long())
model = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
sam, adlp = SAM(model), ADLP(len(data))
batches = AUSAMBatchSampler(adlp, batch_size=64)
loader = DataLoader(data, batch_sampler=batches)
means = []
for epoch in range(4):
    batches.set_epoch(epoch)
    losses = []
    for index, (inputs, labels) in batches.indexed(loader):

        def closure(inputs=inputs, labels=labels):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none")
            loss.mean().backward()
            return loss

        loss, loss_perturbed = sam.backward(closure)
        adlp.update(index, loss, loss_perturbed)
        optimizer.step()
        losses.append(loss.mean().item())
    means.append(sum(losses) / len(losses))
assert means[-1] < means[0] / 2, means
assert adlp.count.sum() == 512 + 3 * 8 * 32, adlp.count.sum()  # all once, then half of every batch
print(f"loss {means[0]:.3f} -> {means[-1]:.3f}")
