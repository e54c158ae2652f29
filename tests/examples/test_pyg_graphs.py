"""PyTorch Geometric: the weights of a loop by hand over the same graphs."""

import torch
import torch.nn.functional as F

from ausam_ext import ADLP, SAM, AUSAMBatchSampler

EPOCHS = 3


def test_weights_are_those_of_a_loop_by_hand(example):
    from torch_geometric.data import Batch

    torch.manual_seed(0)
    graphs, theirs = example.make_graphs(75), example.Net()
    table = example.train(theirs, graphs, EPOCHS)
    torch.manual_seed(0)
    graphs, model = example.make_graphs(75), example.Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sam, adlp = SAM(model, rho=0.05), ADLP(75)
    batches = AUSAMBatchSampler(adlp, 16, epochs=EPOCHS, warmup_epochs=0.3)
    for epoch in range(EPOCHS):
        batches.set_epoch(epoch)
        for rows in batches:
            batch = Batch.from_data_list([graphs[i] for i in rows])
            first = F.cross_entropy(model(batch), batch.y, reduction="none")
            first.mean().backward()
            with sam.perturbed():
                second = F.cross_entropy(model(batch), batch.y, reduction="none")
                second.mean().backward()
            adlp.update(torch.tensor(rows), first, second)
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), model.parameters(), strict=True))
    assert torch.equal(table.total, adlp.total) and adlp.count.sum() == 75 + 2 * (4 * 8 + 5)
