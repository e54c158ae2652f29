"""What forward passes change besides the weights: after a step it is what one plain pass at w makes it."""

import copy
import pickle

import pytest
import torch
from helpers import assert_same_state
from sam.layers import LARGE, LAYERS, Remembers, network, quantised, state_of
from torch import nn

from ausam_ext import SAM, VSAM
from ausam_ext.module_state import ModuleState

METHODS = {"SAM": SAM, "VSAM": lambda m, rho: VSAM(m, rho, warmup_steps=4, max_reuse=2)}


def twice(model, make=SAM):
    """The model with SAM around it, and a copy for plain passes."""
    plain = copy.deepcopy(model)
    return make(model, 0.5), plain


def step(sam, model, plain, x):
    """One of SAM on the model, and one plain forward pass at the same weights; they stay."""
    plain(x)
    model.zero_grad()
    model(x).square().mean().backward()
    if not isinstance(sam, VSAM) or sam.decide():
        with sam.perturbed():
            model(x).square().mean().backward()
    else:
        sam.reuse_()
    assert_same_state(state_of(model), state_of(plain))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_counts_once(backend, name, method):
    model = network(LAYERS[name]())
    sam, plain = twice(model, METHODS[method])
    pointers = {k: b.data_ptr() for k, b in model.named_buffers()}
    for i in range(6):
        step(sam, model, plain, torch.randn(16, 6, generator=torch.Generator().manual_seed(i)))
    if name in ("in place", "in place, large", "code book", "queue"):
        assert {k: b.data_ptr() for k, b in model.named_buffers()}.items() >= {
            k: p for k, p in pointers.items() if not k.endswith("size")
        }.items()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("n", [8, LARGE])
@pytest.mark.parametrize("how", ["in place", "data assigned", "in data", "without a trace"])
def test_what_begins_to_change_later_is_caught(how, n, frozen):
    """Exactly, if it is small or if torch can tell; else within a few steps, and with a warning."""
    model = network(Remembers(how, n, frozen, on=False))
    sam, plain = twice(model)
    traced = n == 8 or how in ("in place", "data assigned")
    for i in range(12):
        model[1].on = plain[1].on = i >= 5
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(i))
        if traced or i not in (5, 6, 7):
            step(sam, model, plain, x)
        elif i < 7:
            with pytest.raises(AssertionError):
                step(sam, model, plain, x)
        else:  # the 8th step looks
            what = (
                f"second pass changed a {'frozen parameter' if frozen else 'buffer'} .* in the last 3 steps"
            )
            with pytest.warns(UserWarning, match=what), pytest.raises(AssertionError):
                step(sam, model, plain, x)
            with torch.no_grad():
                plain[1].memory.copy_(model[1].memory)


def test_what_only_the_second_pass_changes(backend):
    """A layer that acts in every second call, which with SAM is always the second pass."""

    class Every2nd(Remembers):
        parity = 0

        def forward(self, x):
            self.parity ^= 1
            return x if self.parity else super().forward(x)

    for n in (8, LARGE):
        model = network(Every2nd("in place", n))
        sam = SAM(model, 0.5)
        before = copy.deepcopy(state_of(model))
        for _ in range(5):
            model.zero_grad()
            model(torch.ones(4, 6)).sum().backward()
            with sam.perturbed():
                model(torch.ones(4, 6)).sum().backward()
            assert_same_state(state_of(model), before)


def test_switched_between_training_and_evaluation(backend):
    """Statistics of many channels, which batch normalisation writes without a trace, frozen at first."""
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, LARGE), nn.BatchNorm1d(LARGE)]
    model = nn.Sequential(*layers)
    model[1].eval(), model[3].eval()
    sam, plain = twice(model)
    for i in range(9):
        if i == 6:
            model.train(), plain.train()
        step(sam, model, plain, torch.randn(16, 6, generator=torch.Generator().manual_seed(i)))


def test_an_observer_that_is_switched_on_later(backend):
    model = network(quantised(8))
    model[1].disable_observer()
    sam, plain = twice(model)
    for i in range(6):
        if i == 3:
            model[1].enable_observer(), plain[1].enable_observer()
        step(sam, model, plain, torch.randn(16, 6, generator=torch.Generator().manual_seed(i)))


def test_normalisation_that_begins_to_track(backend):
    model = network(nn.BatchNorm1d(8, track_running_stats=False))
    sam, plain = twice(model)
    for i in range(5):
        if i == 2:
            for m in (model, plain):
                m[1].track_running_stats = True
                m[1].running_mean, m[1].running_var = torch.zeros(8), torch.ones(8)
                m[1].num_batches_tracked = torch.tensor(0)
        step(sam, model, plain, torch.randn(16, 6, generator=torch.Generator().manual_seed(i)))


def test_a_layer_without_weights_that_is_added_later(backend):
    model = network(nn.Tanh())
    sam, plain = twice(model)
    for i in range(4):
        if i == 2:
            model.append(nn.BatchNorm1d(3, affine=False)), plain.append(nn.BatchNorm1d(3, affine=False))
        step(sam, model, plain, torch.randn(16, 6, generator=torch.Generator().manual_seed(i)))


@pytest.mark.parametrize("n", [8, LARGE])
def test_after_an_exception(backend, n):
    model = network(Remembers("in place", n))
    sam, plain = twice(model)
    x = torch.randn(16, 6)
    step(sam, model, plain, x)
    model.zero_grad()
    model(x).square().mean().backward()
    plain(x)
    with pytest.raises(ZeroDivisionError), sam.perturbed():
        model(x * 9)
        _ = 1 / 0
    assert_same_state(state_of(model), state_of(plain))
    step(sam, model, plain, x)


def test_large_constants_are_not_copied_in_every_step(monkeypatch):
    """Nor are they written to, which would make a graph that saved them invalid."""
    model = network(Remembers("never", LARGE))
    model.register_parameter("frozen", nn.Parameter(torch.ones(LARGE), requires_grad=False))
    sam, plain = twice(model)
    copied = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda t, **kw: (copied.append(t.numel()), clone(t, **kw))[1])
    versions = []
    for _ in range(70):
        step(sam, model, plain, torch.randn(4, 6))
        versions.append((model[1].memory._version, model.frozen._version))
    assert copied.count(LARGE) == 1
    assert len(set(versions)) == 1


def traced(model):
    return torch.jit.trace(model, torch.randn(16, 6), check_trace=False)


@pytest.mark.parametrize("script", [torch.jit.script, traced])
@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and warns of what it traces
def test_torchscript(script):
    plain = network(nn.BatchNorm1d(8))
    model = script(copy.deepcopy(plain))
    model.load_state_dict(plain.state_dict())  # tracing has moved the statistics
    for i in range(3):
        step(SAM(model, 0.5), model, plain, torch.randn(16, 6, generator=torch.Generator().manual_seed(i)))


def test_a_sam_that_was_copied_or_pickled_after_a_step():
    model = network(Remembers("in data", LARGE))
    sam, plain = twice(model)
    step(sam, model, plain, torch.randn(16, 6))
    for copied in (copy.deepcopy((sam, plain)), pickle.loads(pickle.dumps((sam, plain)))):
        for _ in range(3):
            step(copied[0], copied[0].model, copied[1], torch.randn(16, 6))


class Odd(nn.Module):
    """Buffers that nothing can be written to, beside one that counts."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("expanded", torch.ones(1, 1).expand(3, 5))
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("nowhere", torch.empty(4, device="meta"))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("flags", torch.zeros(4, dtype=torch.bool))
        self.register_buffer("phases", torch.zeros(4, dtype=torch.complex64))
        self.register_buffer("every_third", torch.zeros(30)[::3])
        with torch.inference_mode():
            self.register_buffer("cache", torch.ones(3))

    def forward(self, x):
        self.calls += 1
        self.flags.logical_not_()
        self.phases += x.detach().mean() * 1j
        self.every_third += 1
        return x


def test_buffers_of_any_kind(backend):
    model = network(Odd())
    sam = SAM(model, 0.5)
    for i in range(4):
        model.zero_grad()
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(i))
        model(x).square().mean().backward()
        changing = ("flags", "phases", "every_third")
        once = {k: b.clone() for k, b in model.named_buffers() if k.endswith(changing)}
        with sam.perturbed():
            model(x).square().mean().backward()
        assert model[1].calls == i + 1
        assert all(torch.equal(b, dict(model.named_buffers())[k]) for k, b in once.items())


def test_buffers_on_another_kind_of_device_than_the_weights():
    """They cannot go into one call of an operator with them."""
    layer = nn.BatchNorm1d(4)
    state = ModuleState([layer], [nn.Parameter(torch.empty(3, device="meta"))])
    for step in range(5):
        layer(torch.randn(8, 4) + step)
        once = copy.deepcopy(layer.state_dict())
        assert state.before() == ([], [])
        layer(torch.randn(8, 4))
        state.after()
        assert_same_state(layer.state_dict(), once)


@pytest.mark.parametrize("made_before", [False, True])
def test_lazy_layers(backend, made_before):
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.LazyLinear(3))
    x = torch.randn(16, 6)
    sams = [make(model, 0.5) for make in METHODS.values()] if made_before else []
    model(x)
    for sam in sams or [make(model, 0.5) for make in METHODS.values()]:
        step(sam, model, copy.deepcopy(model), x)


def test_a_model_with_a_sam_is_saved_and_copied_as_ever(tmp_path):
    model = network(nn.BatchNorm1d(8))
    sam, plain = twice(model, METHODS["VSAM"])
    step(sam, model, plain, torch.randn(16, 6))
    torch.save(model, tmp_path / "model")
    again = torch.load(tmp_path / "model", weights_only=False)
    assert_same_state(again.state_dict(), model.state_dict())
    copied = copy.deepcopy(model)
    assert all(not p._backward_hooks for p in copied.parameters())
