"""Momentum-SAM: the gradient at w - rho v/||v||, for any optimizer that keeps momentum."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state, same_bits
from networks import assert_untouched, batch, mlp, snapshot
from sam.fused import CASES, Fused
from torch import nn
from torch.nn.utils import parametrize

from ausam_ext.baselines import MomentumSAM

OPTIMIZERS = {
    "SGD": lambda p, **kw: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, foreach=False, **kw),
    "SGD foreach": lambda p, **kw: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, dampening=0.1, foreach=True, **kw
    ),
    "SGD fused": lambda p, **kw: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True, **kw),
    "SGD Nesterov": lambda p, **kw: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, **kw),
    "Adam": lambda p, **kw: torch.optim.Adam(p, lr=0.01, foreach=False, **kw),
    "Adam foreach": lambda p, **kw: torch.optim.Adam(p, lr=0.01, foreach=True, **kw),
    "Adam fused": lambda p, **kw: torch.optim.Adam(p, lr=0.01, fused=True, **kw),
    "AdamW": lambda p, **kw: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, **kw),
    "RMSprop": lambda p, **kw: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, **kw),
    "NAdam": lambda p, **kw: torch.optim.NAdam(p, lr=0.01, **kw),
}


def momenta(optimizer):
    """Of each parameter, in order."""
    states = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    return [state.get("momentum_buffer", state.get("exp_avg")) for state in states]


def norm_of(tensors):
    return torch.cat([t.reshape(-1) for t in tensors]).norm()


def step(model, optimizer, msam=None, seed=1, sign=1.0):
    """One step; without ``msam`` a plain one."""
    x, y = batch(seed=seed, dtype=next(model.parameters()).dtype)
    optimizer.zero_grad()

    def passes():
        (sign * F.cross_entropy(model(x), y)).backward()

    if msam is None:
        passes()
    else:
        with msam.perturbed():
            passes()
    optimizer.step()


def gradient_at(model, weights, x, y):
    """By torch.func, at other weights than the model's."""
    names = [name for name, _ in model.named_parameters()]

    def loss(weights):
        return F.cross_entropy(
            torch.func.functional_call(model, dict(zip(names, weights, strict=True)), x), y
        )

    return torch.func.grad(loss)(tuple(w.detach() for w in weights))


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_worked_step(backend, weight_decay):
    """L = (w1^2 + 4 w2^2)/2 at w = (3, 1) with v = (3, 4), rho .5, mu .9, lr .1.

    w~ = w - .5 (.6, .8) = (2.7, .6), g = (2.7, 2.4), d = g + wd w, v' = .9 v + d, w' = w - .1 v'.
    """
    w = nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=weight_decay)
    optimizer.state[w]["momentum_buffer"] = torch.tensor([3.0, 4.0], dtype=torch.float64)
    msam = MomentumSAM(optimizer, 0.5)
    with msam.perturbed():
        assert w.tolist() == pytest.approx([2.7, 0.6], abs=1e-12)
        ((w[0] ** 2 + 4 * w[1] ** 2) / 2).backward()
    assert w.tolist() == [3.0, 1.0] and w.grad.tolist() == pytest.approx([2.7, 2.4], abs=1e-12)
    optimizer.step()
    v, after = ([5.43, 6.01], [2.457, 0.399]) if weight_decay else ([5.4, 6.0], [2.46, 0.4])
    assert momenta(optimizer)[0].tolist() == pytest.approx(v, abs=1e-12)
    assert w.tolist() == pytest.approx(after, abs=1e-12)
    with msam.perturbed():
        if not weight_decay:
            assert w.tolist() == pytest.approx([2.1255176, 0.028352927], abs=5e-8)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradient_is_the_one_at_the_perturbed_weights(backend, name):
    model = mlp(torch.float64)
    optimizer = OPTIMIZERS[name](model.parameters())
    msam = MomentumSAM(optimizer, 0.3)
    for seed in range(4):
        x, y = batch(seed=seed, dtype=torch.float64)
        before = snapshot(model)
        weights = [w for _, w in before]
        if seed:
            v = momenta(optimizer)
            weights = [w - 0.3 * m / norm_of(v) for w, m in zip(weights, v, strict=True)]
        optimizer.zero_grad()
        with msam.perturbed():
            F.cross_entropy(model(x), y).backward()
        assert_untouched(model, before)
        for p, g in zip(model.parameters(), gradient_at(model, weights, x, y), strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-13)
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_radius_of_zero_is_the_optimizer_bit_for_bit(backend, name):
    a, b = mlp(), mlp()
    one, two = OPTIMIZERS[name](a.parameters()), OPTIMIZERS[name](b.parameters())
    msam = MomentumSAM(one, 0.0)
    for seed in range(5):
        step(a, one, msam, seed)
        step(b, two, None, seed)
    assert_same_state([a.state_dict(), one.state_dict()], [b.state_dict(), two.state_dict()])


@pytest.mark.parametrize(
    "name", ["SGD", "SGD foreach", "SGD fused", "Adam", "Adam fused", "AdamW", "RMSprop"]
)
def test_to_maximize_is_to_minimize_the_negative_bit_for_bit(backend, name):
    """The momentum of an optimizer that maximizes is of what it adds, with the sign turned."""
    a, b = mlp(), mlp()
    one, two = OPTIMIZERS[name](a.parameters(), maximize=True), OPTIMIZERS[name](b.parameters())
    first, second = MomentumSAM(one, 0.3), MomentumSAM(two, 0.3)
    for seed in range(4):
        step(a, one, first, seed, sign=-1.0)
        step(b, two, second, seed)
    assert all(same_bits(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_a_radius_of_the_next_move_is_nesterovs_momentum(backend, momentum):
    """rho = lr mu ||v||: the perturbed weights are those of torch.optim.SGD(nesterov=True)."""
    a, b = mlp(torch.float64), mlp(torch.float64)
    one = torch.optim.SGD(a.parameters(), lr=0.1, momentum=momentum)
    two = torch.optim.SGD(b.parameters(), lr=0.1, momentum=momentum, nesterov=True)
    msam = MomentumSAM(one)
    for seed in range(20):
        if seed:
            msam.rho = 0.1 * momentum * norm_of(momenta(one)).item()
        with msam.perturbed():
            for p, q in zip(a.parameters(), b.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=0, atol=2e-14)
        step(a, one, msam, seed)
        step(b, two, None, seed)


def test_nothing_is_perturbed_before_there_is_momentum(backend):
    model = mlp()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    before = snapshot(model)
    with MomentumSAM(optimizer).perturbed():
        assert_untouched(model, before)
    assert not any(optimizer.state.values())
    for value in (None, 0.0, torch.inf):  # nor if it has no direction; None is in states of older torch
        for p in model.parameters():
            optimizer.state[p]["momentum_buffer"] = None if value is None else torch.full_like(p, value)
        with MomentumSAM(optimizer).perturbed():
            assert_untouched(model, before)


def test_weights_without_momentum_and_frozen_ones_stay(backend):
    model = mlp()
    optimizer = torch.optim.SGD(
        [{"params": model[:3].parameters()}, {"params": model[3:].parameters(), "momentum": 0.0}],
        lr=0.1,
        momentum=0.9,
    )
    msam = MomentumSAM(optimizer, 0.3)
    step(model, optimizer, msam)
    model[0].requires_grad_(False)
    before = snapshot(model)
    with msam.perturbed():
        moved = [not torch.equal(p, w) for p, (_, w) in zip(model.parameters(), before, strict=True)]
        assert moved == [False, False, True, True, False, False]
        difference = [p.detach() - w for p, (_, w) in zip(model.parameters(), before, strict=True)]
        assert norm_of(difference).item() == pytest.approx(0.3, rel=1e-5)
    assert_untouched(model, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_weights_are_back_whatever_happens_inside(backend, dtype):
    model = mlp(dtype)
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    msam = MomentumSAM(optimizer, 0.3)
    step(model, optimizer, msam)
    before, state = snapshot(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ZeroDivisionError), msam.perturbed():
        assert any(not torch.equal(p, w) for p, (_, w) in zip(model.parameters(), before, strict=True))
        _ = 1 / 0
    assert_untouched(model, before)
    with msam.perturbed():
        for p in model.parameters():
            p.data.fill_(7)
    assert_untouched(model, before)
    assert_same_state(optimizer.state_dict(), state)
    step(model, optimizer, msam)  # and it goes on


@pytest.mark.parametrize("case", CASES)
def test_parameters_in_one_memory_are_one_weight(backend, case):
    """Whose momentum is the sum of theirs, scattered to where they lie."""
    numel, views = CASES[case]
    model, x = Fused(numel, views), torch.randn(numel, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).backward()
    optimizer.step()
    before, v = model.flat.clone(), torch.zeros(numel, dtype=torch.float64)
    for view, m in zip(views, momenta(optimizer), strict=True):
        view(v).add_(m)
    with MomentumSAM(optimizer, 0.3).perturbed():
        torch.testing.assert_close(model.flat, before - 0.3 * v / v.norm(), rtol=1e-12, atol=1e-14)
    assert same_bits(model.flat, before)


def test_one_pass_each_and_gradients_of_several_add_up(backend):
    model, (x, y), count = mlp(torch.float64), batch(dtype=torch.float64), Counter()
    model.register_forward_hook(lambda *_: count.update(["forward"]))
    model[-1].register_full_backward_hook(lambda *_: count.update(["backward"]))
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    msam = MomentumSAM(optimizer, 0.3)
    for seed in range(5):
        step(model, optimizer, msam, seed)
    assert count == {"forward": 5, "backward": 5}
    optimizer.zero_grad()
    with msam.perturbed():
        F.cross_entropy(model(x), y).backward()
    whole = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    for part in (slice(10), slice(10, None)):  # in two blocks, as the momentum is the same
        with msam.perturbed():
            (F.cross_entropy(model(x[part]), y[part]) / 2).backward()
    for p, g in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-15)


def test_running_statistics_are_those_of_the_one_pass(backend):
    model, x = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), batch()[0]
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    msam = MomentumSAM(optimizer, 0.3)
    step(model, optimizer, msam)
    twin = copy.deepcopy(model)
    with msam.perturbed():
        twin.load_state_dict(model.state_dict())
        twin(x), model(x)
    assert_same_state(dict(model.named_buffers()), dict(twin.named_buffers()))
    assert model[1].num_batches_tracked == 2


def test_within_one_autocast_block_each_pass_has_its_weights(backend):
    """Autocast keeps what it cast of weights that train until its block ends."""
    model, (x, _) = mlp(), batch()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    msam = MomentumSAM(optimizer, 1.0)
    step(model, optimizer, msam)

    def outputs():
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).detach()

    plain = outputs()
    with msam.perturbed():
        away = outputs()
    assert not torch.equal(plain, away)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), plain)
        with msam.perturbed():
            assert torch.equal(model(x), away)
        assert torch.equal(model(x), plain)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_overflow_skips_the_step_and_leaves_no_trace(backend, value):
    """Scaled by powers of two the run is bit for bit the unscaled one without that step."""
    a, b = mlp(), mlp()
    one, two = OPTIMIZERS["SGD"](a.parameters()), OPTIMIZERS["SGD"](b.parameters())
    first, second = MomentumSAM(one, 0.3), MomentumSAM(two, 0.3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for seed in range(6):
        x, y = batch(seed=seed)
        one.zero_grad()
        with first.perturbed():
            scaler.scale(F.cross_entropy(a(x), y) * (value if seed == 2 else 1.0)).backward()
        scaler.step(one)
        scaler.update()
        if seed != 2:
            step(b, two, second, seed)
        assert_same_state([a.state_dict(), one.state_dict()], [b.state_dict(), two.state_dict()])
    assert scaler.get_scale() == 4.0


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("stop", [1, 4])
def test_resumed_at_any_step_it_gives_the_same_bits(backend, tmp_path, name, stop):
    def start(seed):
        model = mlp(seed=seed)
        optimizer = OPTIMIZERS[name](model.parameters())
        return model, optimizer, MomentumSAM(optimizer, 0.3)

    run = start(0)
    for seed in range(stop):
        step(*run, seed)
    torch.save([part.state_dict() for part in run], tmp_path / "run.pt")
    other = start(1)
    for part, state in zip(other, torch.load(tmp_path / "run.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    for seed in range(stop, 8):
        step(*run, seed)
        step(*other, seed)
    assert_same_state([part.state_dict() for part in run], [part.state_dict() for part in other])


def test_parameters_that_come_later(backend):
    model = mlp()
    optimizer = OPTIMIZERS["SGD"](model[:3].parameters())
    msam = MomentumSAM(optimizer, 0.3)
    step(model, optimizer, msam)
    optimizer.add_param_group({"params": list(model[3:].parameters())})
    for seed in range(3):
        step(model, optimizer, msam, seed)
    before = snapshot(model)
    with msam.perturbed():
        assert all(not torch.equal(p, w) for p, (_, w) in zip(model.parameters(), before, strict=True))
    assert_untouched(model, before)


def test_a_step_inside_is_refused(backend):
    model = mlp()
    optimizer, other = OPTIMIZERS["SGD"](model.parameters()), mlp(seed=1)
    others = torch.optim.SGD(other.parameters(), lr=0.1)
    msam = MomentumSAM(optimizer)
    for seed in range(2):
        before = snapshot(model)
        with pytest.raises(RuntimeError, match=r"optimizer.step\(\) inside perturbed\(\)"), msam.perturbed():
            step(other, others, None)  # of other weights, it is free
            step(model, optimizer, None, seed)
        assert_untouched(model, before)
        step(model, optimizer, None, seed)  # outside it is free again


def test_a_block_in_a_block_is_refused(backend):
    model = mlp()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    msam = MomentumSAM(optimizer)
    step(model, optimizer, msam)
    before = snapshot(model)
    with (
        pytest.raises(RuntimeError, match=r"perturbed\(\): already inside"),
        msam.perturbed(),
        msam.perturbed(),
    ):
        pass
    assert_untouched(model, before)
    with (
        parametrize.cached(),
        pytest.raises(RuntimeError, match=r"inside parametrize\.cached"),
        msam.perturbed(),
    ):
        pass


@pytest.mark.parametrize("name", ["Adagrad", "Adadelta", "Rprop", "RMSprop"])
def test_an_optimizer_that_keeps_no_momentum(name):
    """Torch's say it at once if momentum is an argument of theirs, else after their first step."""
    model = mlp()
    optimizer = getattr(torch.optim, name)(model.parameters())
    if name == "RMSprop":
        with pytest.raises(ValueError, match=r"optimizer: expected one that keeps momentum.*got momentum=0"):
            MomentumSAM(optimizer)
        return
    step(model, optimizer)
    before = snapshot(model)
    with pytest.raises(TypeError, match=f"optimizer: .*momentum_buffer .* or as exp_avg .*got {name}"):
        step(model, optimizer, MomentumSAM(optimizer))
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: MomentumSAM(m), TypeError, "optimizer: expected a torch.optim.Optimizer, got Sequential"),
        (lambda m: MomentumSAM(torch.optim.LBFGS(m.parameters())), TypeError, "optimizer: LBFGS calls"),
        (lambda m: MomentumSAM(torch.optim.SGD(m.parameters(), lr=0.1)), ValueError, "got momentum=0"),
        (lambda m: MomentumSAM(OPTIMIZERS["SGD"](m.parameters()), -1), ValueError, "rho: expected a finite"),
        (lambda m: MomentumSAM(OPTIMIZERS["SGD"](m.parameters()), "1"), TypeError, "rho: expected a number"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make(mlp())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_an_optimizer_whose_momentum_is_in_other_processes_is_refused(free_port):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    store = torch.distributed.TCPStore("127.0.0.1", free_port, 1, True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        optimizer = ZeroRedundancyOptimizer(mlp().parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
        with pytest.raises(TypeError, match=r"optimizer: .* in each process, got ZeroRedundancyOptimizer"):
            MomentumSAM(optimizer)
    finally:
        torch.distributed.destroy_process_group()


def test_a_radius_that_became_bad_and_a_momentum_that_does_not_fit(backend):
    model = mlp()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    msam = MomentumSAM(optimizer)
    step(model, optimizer, msam)
    before = snapshot(model)
    msam.rho = float("nan")
    with (
        pytest.raises(ValueError, match="rho: expected a finite number not below 0, got nan"),
        msam.perturbed(),
    ):
        pass
    msam.rho = 0.1
    last = list(model.parameters())[-1]
    for wrong, error in ((torch.ones(4), ValueError), (torch.ones(3).half(), TypeError)):
        optimizer.state[last]["momentum_buffer"] = wrong
        with pytest.raises(error, match="grads"), msam.perturbed():
            pass
        assert_untouched(model, before)


def test_a_state_of_another_kind():
    msam = MomentumSAM(OPTIMIZERS["SGD"](mlp().parameters()))
    state = msam.state_dict()
    with pytest.raises(ValueError, match="method: expected a state of MomentumSAM, got one of SAM"):
        msam.load_state_dict({**state, "method": "SAM"})
    with pytest.raises(ValueError, match="version: expected 1, got 2"):
        msam.load_state_dict({**state, "version": 2})
    with pytest.raises(KeyError, match="method"):
        msam.load_state_dict({})
