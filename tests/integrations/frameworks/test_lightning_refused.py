"""What SAMCallback and SAMOptimizer refuse in Lightning."""

from contextlib import nullcontext

import pytest
import torch
from integrations.frameworks.lightning_runs import (
    IGNORED,
    METHODS,
    Net,
    digits,
    fit,
)
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from ausam_ext import ADLP, SAM, VSAM, AUSAMBatchSampler
from ausam_ext.integrations import SAMOptimizer
from ausam_ext.integrations.lightning import IndexedLoader, SAMCallback

pytestmark = IGNORED


class TakesItsBatches(Net):
    def training_step(self, dataloader_iter):
        return super().training_step(*next(dataloader_iter)[:2])


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Stands for the one that needs a package of its own."""


class FSDPStrategy(SingleDeviceStrategy):
    """Stands for the one that needs a GPU."""


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [({}, True), ({"initial_rate": 0.34}, False), ({"alpha": 0.0}, False), ({"warmup_steps": 99}, False)],
)
def test_a_run_that_is_too_short_for_the_rate_it_starts_from(tmp_path, arguments, warned):
    callback = SAMCallback(lambda m: VSAM(m, **{"warmup_steps": 2, **arguments}))
    expected = pytest.warns(
        UserWarning, match=r"in 2% of the steps, and 21 steps are too few .*initial_rate=0\.34"
    )
    with expected if warned else nullcontext():
        fit(tmp_path, Net(), [callback], DataLoader(digits(210), batch_size=30))


def test_what_is_refused(tmp_path):
    loader = DataLoader(digits(60), batch_size=30)
    callbacks = [SAMCallback(METHODS["SAM"])]
    with pytest.raises(TypeError, match="SAMCallback: with manual optimization"):
        fit(tmp_path, Manual(), callbacks, loader)
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(TypeError, match="use 'bf16-mixed', or manual optimization"):
        fit(tmp_path, Net(), callbacks, loader, plugins=[scaled])
    with pytest.raises(TypeError, match=r"SAMCallback: training_step\(dataloader_iter\)"):
        fit(tmp_path, TakesItsBatches(), callbacks, loader)
    for strategy in (DeepSpeedStrategy, FSDPStrategy):
        with pytest.raises(TypeError, match=f"SAMCallback: {strategy.__name__} keeps weights"):
            fit(tmp_path, Net(), callbacks, loader, strategy=strategy(), accelerator="auto")
    with pytest.raises(TypeError, match="SAMCallback: LBFGS"):
        fit(tmp_path, Net(torch.optim.LBFGS), callbacks, loader)
    with pytest.raises(TypeError, match="make: expected it to return a SAM or VSAM"):
        fit(tmp_path, Net(), [SAMCallback(lambda model: None)], loader)
    batches = AUSAMBatchSampler(ADLP(60), 30)
    with pytest.raises(RuntimeError, match=r"training_step: expected it to call SAMCallback.record"):
        fit(tmp_path, Net(), [SAMCallback(METHODS["SAM"], batches)], loader)
    with pytest.raises(RuntimeError, match=r"record\(\): there is no table"):
        callbacks[0].record(torch.arange(2), torch.ones(2))
    with pytest.raises(TypeError, match="loader: expected a DataLoader made with batch_sampler="):
        IndexedLoader(loader)


def test_the_adapter_refuses_what_it_cannot_do_in_automatic_optimization(tmp_path):
    adapted = lambda p: SAMOptimizer(torch.optim.SGD(p, lr=0.1), SAM(model))  # noqa: E731
    loader = DataLoader(digits(120), batch_size=30)
    model = Net(adapted)
    with pytest.raises(RuntimeError, match="the closure did not clear the gradients"):
        fit(tmp_path, model, [], loader, accumulate_grad_batches=2)
    model = Net(adapted)
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(RuntimeError, match=r"step\(\): SAM runs the closure twice"):
        fit(tmp_path, model, [], loader, plugins=[scaled])
