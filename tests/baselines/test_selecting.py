"""What ESAM and K-SAM promise alike: passes and their cost, exact weights, state of layers, mixed precision,
processes, resuming, errors."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from baselines.selecting import METHODS, Losses, gradients
from device.mode import no_synchronisation
from distributed import selecting as on_processes
from distributed.processes import assert_passed, checks, start
from helpers import assert_same_state, assert_unchanged, same_bits
from networks import assert_untouched, batch, mlp, snapshot
from sam.layers import LAYERS, network, state_of
from sam.scaling import assert_close, scaler
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ausam_ext import SAM
from ausam_ext.baselines import ESAM, KSAM
from ausam_ext.integrations import SAMOptimizer

K, N = 20, 8  # samples of a batch, and of those that are chosen
INF = float("inf")


@pytest.fixture(params=METHODS)
def make(request):
    return METHODS[request.param]


@pytest.mark.parametrize(
    "make", [lambda m: ESAM(m, 0.3, beta=1.0, gamma=1.0), lambda m: KSAM(m, 0.3, k_ratio=1.0)]
)
def test_with_all_tensors_and_samples_it_is_sam_bit_for_bit(make, backend):
    ours, plain = mlp(), mlp()
    sams = make(ours), SAM(plain, 0.3)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.2, momentum=0.9) for m in (ours, plain)]
    for step in range(5):
        losses, other = Losses(ours, *batch(seed=step)), Losses(plain, *batch(seed=step))

        def closure(other=other):
            plain.zero_grad()
            loss = other(None)
            loss.mean().backward()
            return loss

        for a, b in zip(sams[0].backward(losses), sams[1].backward(closure), strict=True):
            assert same_bits(a, b)
        assert all(map(same_bits, gradients(ours), gradients(plain)))
        for optimizer in optimizers:
            optimizer.step()
    assert all(map(same_bits, ours.parameters(), plain.parameters()))


def test_passes_and_what_is_returned(make):
    """On which samples, and whether with a gradient; test_cost.py counts what they compute."""
    model = mlp()
    sam, losses = make(model), Losses(model, *batch())
    loss, loss_perturbed = sam.backward(losses)
    whole, chosen = None, sam.positions.tolist()
    expected = [(whole, True), (whole, False), (chosen, True)]
    if make is METHODS["KSAM"]:
        expected = [(whole, False), (chosen, True), (chosen, True)]
    assert [(p if p is None else p.tolist(), grad) for p, _, grad in losses.passes] == expected
    assert loss.shape == (K,) and loss_perturbed.shape == sam.positions.shape == (N,)
    assert not (loss.requires_grad or loss_perturbed.requires_grad)


@pytest.mark.parametrize(
    ("share", "size", "expected"),
    [(0.29, 100, 29), (0.01, 100, 2), (0.5, 7, 3), (0.5, 1, 1), (0.1, 2, 2), (1.0, 5, 5), (1 / 3, 9, 3)],
)
def test_how_many_samples_are_chosen(share, size, expected):
    """0.29 * 100 is 28.999999999999996; batch normalisation refuses a batch of one."""
    for make in (lambda m: ESAM(m, gamma=share), lambda m: KSAM(m, k_ratio=share)):
        sam = make(mlp())
        sam.backward(Losses(sam.model, *batch(size)))
        assert len(sam.positions) == expected and torch.equal(sam.positions, sam.positions.unique())


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_gradients_of_an_earlier_step_do_not_add_up(make, optimizer):
    """Whether the loop clears them or not, or never steps."""
    loops = [(make(m), m, optimizer(m.parameters(), lr=0.02)) for m in (mlp(), mlp())]
    for step in range(12):
        for sam, model, base in loops:
            sam.backward(Losses(model, *batch(seed=step)))
            if step % 4 != 2:
                base.step()
            if sam is loops[0][0]:
                base.zero_grad(set_to_none=step % 2 == 0)
    assert_same_state(*(model.state_dict() for _, model, _ in loops))


class Stop(Exception):
    pass


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise Stop


@pytest.mark.parametrize("kind", ["forward", "backward", "interrupt"])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_weights_come_back_from_every_pass(backend, make, call, kind):
    """And the step can be taken again: what was drawn for it still is."""
    model, twin = mlp(), mlp()
    model[0].weight.requires_grad_(False), twin[0].weight.requires_grad_(False)
    sam, other, stops = make(model), make(twin), KeyboardInterrupt if kind == "interrupt" else Stop
    for step in range(3):
        losses = Losses(model, *batch(seed=step))

        def failing(positions, losses=losses):
            loss = losses(positions)
            if len(losses.passes) <= call:
                return loss
            if kind == "backward" and torch.is_grad_enabled():
                return FailsBackward.apply(loss)
            raise stops

        before, flags = snapshot(model), [p.requires_grad for p in model.parameters()]
        state = sam.state_dict()
        with pytest.raises(stops):
            sam.backward(failing)
        assert_untouched(model, before)
        assert [p.requires_grad for p in model.parameters()] == flags
        assert_same_state(sam.state_dict(), state)

        other.backward(Losses(twin, *batch(seed=step)))
        sam.backward(losses)
        assert_untouched(model, before)
        assert_same_state(gradients(model), gradients(twin))
        assert torch.equal(sam.positions, other.positions)


def test_weights_in_one_memory_and_gradients_of_an_optimizer(make):
    """Parameters that overlap are one weight; gradients that are parts of a larger tensor stay there."""
    model, twin, batches = mlp(), mlp(), [batch(seed=s) for s in range(4)]
    params = list(model.parameters())
    memory = torch.zeros(sum(p.numel() for p in params))
    for p, part in zip(params, memory.split([p.numel() for p in params]), strict=True):
        p.grad = part.view_as(p)
    steps = [(make(m), m, torch.optim.SGD(m.parameters(), lr=0.2)) for m in (model, twin)]
    for x, y in batches:
        for sam, m, optimizer in steps:
            sam.backward(Losses(m, x, y))
            optimizer.step()
        flat = torch.cat([p.grad.flatten() for p in twin.parameters()])
        assert torch.equal(memory, flat) and memory.any()


# In test_module_state.py: running statistics, observers, code books, queues, buffers that come and go.
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_as_one_pass_on_the_whole_batch_made_them(backend, make, name):
    torch.manual_seed(0)
    model = network(LAYERS[name]())
    plain, sam = copy.deepcopy(model), make(model)
    targets = torch.zeros(16, dtype=torch.int64)
    for i in range(6):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(i))
        plain(x)
        sam.backward(Losses(model, x, targets))
        assert_same_state(state_of(model), state_of(plain))


def test_running_statistics_and_their_count(make):
    """Over training steps, whose weights move; and in evaluation mode nothing moves them."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    sam, optimizer = make(model), torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(5):
        x, y = batch(seed=step)
        expected = copy.deepcopy(model)
        expected(x)
        sam.backward(Losses(model, x, y))
        assert model[1].num_batches_tracked == step + 1
        assert_same_state(state_of(model), state_of(expected))
        optimizer.step()
    model.eval()
    before = copy.deepcopy(state_of(model))
    sam.backward(Losses(model, *batch()))
    assert_same_state(state_of(model), before)


@pytest.mark.parametrize("call", [0, 1, 2])
def test_layers_after_a_pass_that_failed(make, call):
    """As the one pass on the whole batch made them, whichever failed."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    plain, losses = copy.deepcopy(model), Losses(model, *batch())

    def failing(positions):
        loss = losses(positions)
        if len(losses.passes) > call:
            raise Stop
        return loss

    plain(losses.x)
    with pytest.raises(Stop):
        make(model).backward(failing)
    assert_same_state(state_of(model), state_of(plain))


def test_losses_are_returned_as_they_were(make):
    """Compiled code may give every pass the same memory for its result."""
    model, given, last = mlp(), [], []

    def losses(positions):
        for loss in last:
            loss.data.fill_(torch.nan)
        loss = Losses(model, *batch())(positions)
        given.append(loss.detach().clone())
        last[:] = [loss]
        return loss

    assert_same_state(make(model).backward(losses), (given[0], given[2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_autocast_block_around_the_step(make, dtype):
    """Autocast keeps its casts until the block ends: of other weights, or without a gradient."""
    (x, y), results = batch(), []
    for outside in (False, True):
        model = mlp()
        sam = make(model)

        def losses(positions, model=model, outside=outside):
            with nullcontext() if outside else torch.autocast("cpu", dtype):
                return Losses(model, x, y)(positions)

        for _ in range(3):
            with torch.autocast("cpu", dtype) if outside else nullcontext():
                both = sam.backward(losses)
            results.append([*both, sam.positions, *gradients(model)])
    assert_same_state(results[:3], results[3:])
    assert all(g is not None and g.any() for g in results[0][3:])


def test_gradients_are_computed_also_under_no_grad(make):
    model, twin = mlp(), mlp()
    with torch.no_grad():
        make(model).backward(Losses(model, *batch()))
    make(twin).backward(Losses(twin, *batch()))
    assert_same_state(gradients(model), gradients(twin))


class Scaled:
    """A training loop with a GradScaler."""

    def __init__(self, make, scaler):
        self.model, self.scaler = mlp(), scaler
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.sam = make(self.model, scaler=scaler)

    def step(self, x, y, factors=(1.0, 1.0)):
        """``factors``: of the gradients of each backward, as a scale that is too large makes them."""
        left = list(factors)

        def losses(positions):
            loss = Losses(self.model, x, y)(positions)
            if loss.requires_grad:
                factor = left.pop(0)
                loss.register_hook(lambda g: g * factor)
            return loss

        self.losses = self.sam.backward(losses)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        self.gradient = [g.clone() for g in gradients(self.model)]
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


def test_scaling_changes_nothing_but_rounding(backend, make):
    plain, scaled = Scaled(make, None), Scaled(make, scaler(2.0**20, growth_interval=1))
    for step in range(8):
        for loop in (plain, scaled):
            loop.step(*batch(seed=step))
        assert plain.sam.overflow is None and scaled.sam.overflow.item() is False
        assert torch.equal(plain.sam.positions, scaled.sam.positions)
        assert_close(scaled.gradient, plain.gradient, 1e-5)
        assert_close(scaled.losses, plain.losses, 1e-5)


@pytest.mark.parametrize("factors", [(INF, 1.0), (1.0, INF), (INF, INF), (float("nan"), 1.0)])
def test_an_overflow_in_either_pass_skips_the_step(backend, make, factors):
    loop, twin = Scaled(make, scaler()), Scaled(make, scaler())
    for each in (loop, twin):
        each.step(*batch(seed=0))
    before = [p.detach().clone() for p in loop.model.parameters()]
    momentum = copy.deepcopy(loop.optimizer.state_dict()["state"])

    loop.step(*batch(seed=1), factors)
    assert loop.sam.overflow.item() is True and loop.scaler.get_scale() == 2.0**15
    assert all(map(same_bits, loop.model.parameters(), before))
    assert_same_state(loop.optimizer.state_dict()["state"], momentum)

    twin.sam.load_state_dict(loop.sam.state_dict())  # the iteration has ended all the same
    for each in (loop, twin):
        each.step(*batch(seed=2))
    assert loop.sam.overflow.item() is False
    assert_close(loop.gradient, twin.gradient, 1e-5)


def test_defaults_of_torch(default, backend, make):
    def work():
        with torch.device("cpu"):
            torch.manual_seed(0)
            layers = [nn.Linear(6, 8, dtype=torch.float32), nn.BatchNorm1d(8, dtype=torch.float32)]
            model = nn.Sequential(*layers, nn.Linear(8, 3, dtype=torch.float32))
            x, y = torch.randn(40, 6, dtype=torch.float32), torch.randint(0, 3, (40,))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sam, results = make(model), []
        for _ in range(8):
            results.append([*sam.backward(Losses(model, x, y)), sam.positions])
            optimizer.step()
            sam.load_state_dict(sam.state_dict())
        return {"results": results, "model": dict(model.state_dict()), "sam": sam.state_dict()}

    assert_unchanged(work, default)


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("how", ["state", "pickle"])
def test_resumed_at_any_step_it_trains_the_same_bits(tmp_path, make, steps, how):
    def training():
        torch.manual_seed(0)
        layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)]
        model = nn.Sequential(*layers)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return {"model": model, "optimizer": optimizer, "sam": make(model)}

    def train(parts, first, last):
        for step in range(first, last):
            parts["sam"].backward(Losses(parts["model"], *batch(seed=step)))
            parts["optimizer"].step()

    def state(parts):
        return {name: part.state_dict() for name, part in parts.items()}

    whole = training()
    train(whole, 0, 10)
    stopped = training()
    train(stopped, 0, steps)
    if how == "pickle":
        resumed = pickle.loads(pickle.dumps(stopped))
    else:
        torch.save({**state(stopped), "rng": torch.get_rng_state()}, tmp_path / "state")
        saved = torch.load(tmp_path / "state", weights_only=True)
        resumed = training()
        for name, part in resumed.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"])
    train(resumed, steps, 10)
    assert_same_state(state(resumed), state(whole))


class Waits(TorchDispatchMode):
    """Notes the calls that on a GPU wait for it, whatever the tensors."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "equal.default", "unique")):
            self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device(device, make):
    model, (x, y) = mlp().to(device), batch()
    losses = Losses(model, x.to(device), y.to(device))
    sam = make(model)
    sam.backward(losses)
    with no_synchronisation(device), Waits() as waits:
        for _ in range(5):
            sam.backward(losses)
    assert not waits.seen


# What a user may give, and what is said of it.
ONE = torch.ones(1, requires_grad=True)
BAD = {
    "no function": (
        3,
        TypeError,
        r"losses: expected a function of positions, got 3; write `loss, loss_perturb",
    ),
    "a tensor": (torch.ones(K), TypeError, "losses: expected a function of positions"),
    "a closure": (lambda: ONE.expand(K), TypeError, "losses: expected a function of one argument, positions"),
    "nothing": (lambda positions: None, TypeError, r"losses\(None\): expected a tensor of .*, got None"),
    "integers": (
        lambda positions: torch.ones(K, dtype=torch.int64),
        TypeError,
        r"losses\(None\): expected a",
    ),
    "a mean": (
        lambda positions: ONE.sum(),
        ValueError,
        r'losses\(None\): expected one loss per sample \(reduction="none"\), shape \(K,\), got \(\)',
    ),
    "two dimensions": (lambda positions: ONE.expand(K, 1), ValueError, r"shape \(K,\), got \(20, 1\)"),
    "no sample": (lambda positions: ONE[:0], ValueError, r"shape \(K,\), got \(0,\)"),
    "positions ignored": (
        lambda positions: ONE.expand(K),
        ValueError,
        r"losses\(positions\): expected one loss per sample .*, shape \(8,\), got \(20,\)",
    ),
    "detached": (
        lambda positions: ONE.detach().expand(K if positions is None else N),
        ValueError,
        "losses: expected losses that depend on a weight with requires_grad=True, got none",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_losses(make, name):
    losses, error, match = BAD[name]
    model = mlp()
    sam = make(model)
    if name == "positions ignored" and make is METHODS["ESAM"]:
        losses = Losses(model, *batch())
        ignoring, losses = losses, lambda positions: ignoring(None)
    before, state = snapshot(model), copy.deepcopy(sam.state_dict())
    with pytest.raises(error, match=match):
        sam.backward(losses)
    assert_untouched(model, before)
    assert_same_state(sam.state_dict(), state)
    assert sam.positions is None
    if name != "positions ignored":
        assert all(g is None for g in gradients(model))
    sam.backward(Losses(model, *batch()))


def test_what_is_no_function_of_positions_leaves_the_gradients(make):
    model = mlp()
    sam = make(model)
    sam.backward(Losses(model, *batch()))
    before = [g.clone() for g in gradients(model)]
    for bad in ("no function", "a closure"):
        with pytest.raises(TypeError):
            sam.backward(BAD[bad][0])
    assert_same_state(gradients(model), before)


def test_a_batch_that_changes_its_size():
    """ESAM compares the losses of the same samples."""
    model, sizes = mlp(), [20, 12]
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"losses\(None\) at w \+ e: expected the shape of .*, \(20,\), got \(12,\)"
    ):
        METHODS["ESAM"](model).backward(lambda positions: Losses(model, *batch(sizes.pop(0)))(positions))
    assert_untouched(model, before)


def test_forms_that_do_not_fit(make):
    """Each says what to write."""
    model = mlp()
    sam, before = make(model), snapshot(model)
    F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    with pytest.raises(
        TypeError, match=r"perturbed\(\): .* runs all its passes itself; write `loss, loss_per"
    ):
        sam.perturbed()
    optimizer = SAMOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), sam)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch()[0]), batch()[1])
        loss.backward()
        return loss

    with pytest.raises(
        TypeError, match=r"SAMOptimizer and its closure are not for .*SAM: step the optimizer"
    ):
        optimizer.step(closure)
    assert_untouched(model, before)


def test_the_wrong_moment(make):
    model, scale = mlp(), scaler()
    sam, optimizer = make(model, scaler=scale), torch.optim.SGD(model.parameters(), lr=0.1)
    losses = Losses(model, *batch())
    sam.backward(losses)
    scale.unscale_(optimizer)
    before = [g.clone() for g in gradients(model)]
    with pytest.raises(RuntimeError, match=r"backward\(\): expected scaled gradients"):
        sam.backward(losses)
    assert_same_state(gradients(model), before)


def test_an_optimizer_of_the_other_direction_is_refused(make):
    model = mlp()
    sam = make(model, maximize=True)
    sam.backward(Losses(model, *batch()))
    with pytest.raises(
        RuntimeError, match=r"optimizer.step\(\): expected maximize=True in param_groups\[0\]"
    ):
        torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return start(on_processes, 2, tmp_path_factory.mktemp("selecting"))


@pytest.mark.parametrize("name", checks(on_processes))
def test_two_processes(outcomes, name):
    assert_passed(outcomes, name)
