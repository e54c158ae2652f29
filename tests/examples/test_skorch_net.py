"""skorch: both nets against a loop by hand; its callbacks, search and pickles."""

import pickle

import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler
from ausam_ext.integrations import SAMOptimizer


@pytest.fixture
def data(example):
    x, _, y, _ = example.make_data()
    return x[:500], y[:500]


@pytest.fixture
def fitted(example, data):
    def fit(kind, **options):
        torch.manual_seed(0)
        options = {"max_epochs": 3, "train_split": None, "iterator_train__shuffle": False, **options}
        return example.make_net(kind, **options).fit(*data)

    return fit


@pytest.fixture
def hand(by_hand, data):
    """Weights and losses of three epochs; ``make`` gives SAM or VSAM."""

    def train(make, clip=None, decay=1.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        x, y = map(torch.tensor, data)

        def before_step(step):
            optimizer.param_groups[0]["lr"] = 0.05 * decay ** (step // 8)
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)

        steps = [(None, xs, ys) for _ in range(3) for xs, ys in zip(x.split(64), y.split(64), strict=True)]
        by_hand(model, optimizer, make(model), steps, before_step=before_step)
        return list(model.parameters())

    return train


def weights(net):
    return list(net.module_.parameters())


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_sam(example, fitted, hand):
    net = fitted(example.SAMNet)
    assert same(weights(net), hand(lambda model: SAM(model, rho=0.05)))
    assert not same(weights(net), hand(lambda model: SAM(model, rho=0.0)))


def test_the_loss_in_the_history_is_that_of_the_first_pass(example, fitted, data):
    torch.manual_seed(0)
    module = example.make_net().module
    torch.manual_seed(0)
    net = fitted(example.SAMNet, max_epochs=1, rho=0.5)
    x, y = (torch.tensor(part[:64]) for part in data)
    assert net.history[0, "batches", 0, "train_loss"] == nn.functional.cross_entropy(module(x), y).item()


def test_ausam(example, fitted, by_hand, chosen, data):
    net = fitted(example.AUSAMNet, criterion__reduction="none")
    torch.manual_seed(0)
    model = example.make_net().module
    optimizer, adlp = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), ADLP(500)
    batches = AUSAMBatchSampler(adlp, 64, epochs=3, warmup_epochs=0.3)
    by_hand(model, optimizer, SAM(model), chosen(batches, 3, *map(torch.tensor, data)), adlp)
    assert same(weights(net), model.parameters())
    assert torch.equal(net.adlp_.total, adlp.total) and torch.equal(net.adlp_.count, adlp.count)
    assert adlp.count.sum() == 500 + 2 * 250


def test_ausam_knows_only_what_is_not_held_out_for_validation(example, data):
    net = example.make_net(example.AUSAMNet, criterion__reduction="none", max_epochs=6).fit(*data)
    assert len(net.adlp_) == 400 and net.adlp_.count.sum() == 400 + 5 * 200
    assert net.history[-1, "valid_acc"] > 0.5 > net.history[0, "valid_acc"]


def test_schedule_and_clipping(example, fitted, hand):
    """skorch's clipping acts in both passes, which SAM's direction does not feel."""
    from skorch.callbacks import GradientNormClipping, LRScheduler

    callbacks = [LRScheduler("StepLR", step_size=1, gamma=0.5), GradientNormClipping(0.1)]
    net = fitted(example.SAMNet, callbacks=callbacks)
    torch.testing.assert_close(weights(net), hand(SAM, clip=0.1, decay=0.5))


def test_vsam(example, fitted, hand):
    class VSAMNet(example.SAMNet):
        def initialize_optimizer(self, *args, **kwargs):
            super(example.SAMNet, self).initialize_optimizer(*args, **kwargs)
            self.optimizer_ = SAMOptimizer(self.optimizer_, vsam(self.module_))
            return self

    vsam = lambda model: VSAM(model, warmup_steps=4)  # noqa: E731
    assert same(weights(fitted(VSAMNet)), hand(vsam))

    from skorch.callbacks import GradientNormClipping

    with pytest.raises(RuntimeError, match="clip"):  # between the passes: the difference would be another
        fitted(VSAMNet, callbacks=[GradientNormClipping(0.1)])


def test_search_pickle_and_changed_settings(example, fitted, data):
    search = GridSearchCV(example.make_net(max_epochs=1), {"rho": [0.0, 0.1]}, cv=2, refit=True).fit(*data)
    assert search.best_estimator_.optimizer_.sam.rho == search.best_params_["rho"]
    net = clone(example.make_net(rho=0.2)).fit(*data)
    again = pickle.loads(pickle.dumps(net)).partial_fit(*data)
    assert again.optimizer_.sam.rho == 0.2 and not same(weights(again), weights(net))
    net.set_params(optimizer__momentum=0.5)
    assert isinstance(net.optimizer_, SAMOptimizer) and net.optimizer_.param_groups[0]["momentum"] == 0.5
