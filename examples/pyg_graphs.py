"""PyTorch Geometric: graphs are classified with AUSAM and SAM.

No bridge is needed: PyG's `DataLoader` takes `batch_sampler=batches`, and one graph is one sample. The
losses per sample are those of the graphs of a batch, by `reduction="none"`.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool

from ausam_ext import ADLP, SAM, AUSAMBatchSampler


def make_graphs(n=200):
    """Of random sizes; the features of one class are a little larger."""
    graphs = []
    for label in torch.randint(0, 2, (n,)):
        nodes = int(torch.randint(4, 12, ()))
        x = torch.randn(nodes, 5) + 0.5 * label
        graphs.append(Data(x=x, edge_index=torch.randint(0, nodes, (2, 3 * nodes)), y=label.view(1)))
    return graphs


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = GCNConv(5, 16), nn.Linear(16, 2)

    def forward(self, graphs):
        hidden = self.conv(graphs.x, graphs.edge_index).relu()
        return self.out(global_mean_pool(hidden, graphs.batch, len(graphs.y)))


def train(model, graphs, epochs=10):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sam, adlp = SAM(model, rho=0.05), ADLP(len(graphs))
    batches = AUSAMBatchSampler(adlp, batch_size=16, epochs=epochs, warmup_epochs=0.3)
    loader = DataLoader(graphs, batch_sampler=batches)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for index, batch in batches.indexed(loader):
            loss = F.cross_entropy(model(batch), batch.y, reduction="none")
            loss.mean().backward()
            with sam.perturbed():
                loss_perturbed = F.cross_entropy(model(batch), batch.y, reduction="none")
                loss_perturbed.mean().backward()
            adlp.update(index, loss, loss_perturbed)
            optimizer.step()
            optimizer.zero_grad()
    return adlp


if __name__ == "__main__":
    torch.manual_seed(0)
    graphs, model = make_graphs(), Net()
    train(model, graphs)
    whole = next(iter(DataLoader(graphs, batch_size=len(graphs))))
    print(f"accuracy {(model(whole).argmax(1) == whole.y).float().mean():.3f}")
