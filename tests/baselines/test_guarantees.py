"""What SAM promises, for every method that takes its second pass at times."""

import copy
import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from baselines.flat import gradient
from baselines.methods import METHODS
from helpers import assert_same_state, same_bits
from networks import assert_untouched, batch, closure_of, mlp, snapshot
from torch import nn

from ausam_ext.integrations import SAMOptimizer

STEPS = 12
INF = float("inf")


@pytest.fixture(params=METHODS)
def make(request):
    return METHODS[request.param]


class Training:
    """A network with BatchNorm and dropout, trained with momentum."""

    def __init__(self, make, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.sam = make(self.model, **options)
        self.done = 0

    def steps(self, until):
        """States after each step."""
        states = []
        while self.done < until:
            self.done += 1
            torch.manual_seed(self.done)  # of the dropout
            self.sam.backward(closure_of(self.model, *batch(seed=self.done)))
            self.optimizer.step()
            states.append(copy.deepcopy(self.state()))
        return states

    def state(self):
        return {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "sam")}


def test_iterations_of_both_kinds(make):
    """Or the tests below would show less than they say."""
    sampled = [s["sam"]["sampled"] for s in Training(make).steps(STEPS)]
    assert sampled[0] and {a + b for a, b in itertools.pairwise(sampled)} >= {1} and not all(sampled)


@pytest.mark.parametrize("stop", [1, 2, 5, 9])
def test_resumes_bit_for_bit(make, stop):
    whole = Training(make).steps(STEPS)
    first = Training(make)
    assert_same_state(first.steps(stop), whole[:stop])
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second, state = Training(make), torch.load(file, weights_only=True)
    for name, part in state.items():
        getattr(second, name).load_state_dict(part)
    second.done = stop
    assert_same_state(second.steps(STEPS), whole[stop:], f"stopped after {stop}")


def test_a_decision_that_was_taken_is_kept(make):
    """Saved between decide() and the end of the iteration."""
    models = [mlp(), mlp()]
    methods = [make(m) for m in models]
    for step in range(STEPS):
        for model in models:
            closure_of(model, *batch(seed=step))()
        decided = methods[0].decide()
        methods[1].load_state_dict(copy.deepcopy(methods[0].state_dict()))
        assert methods[1].decide() == decided
        for model, method in zip(models, methods, strict=True):
            if decided:
                with method.perturbed():
                    closure_of(model, *batch(seed=step))()
            else:
                method.reuse_()
        assert_same_state(methods[0].state_dict(), methods[1].state_dict())
        assert all(same_bits(p.grad, q.grad) for p, q in zip(*(m.parameters() for m in models), strict=True))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_exception_the_weights_are_back_and_the_iteration_goes_on(make, error):
    model, twin, (x, y) = mlp(), mlp(), batch()
    method = make(model)
    before, calls = snapshot(model), []

    def fails():
        calls.append(1)
        if len(calls) == 2:
            raise error
        return closure_of(model, x, y)()

    with pytest.raises(error):
        method.backward(fails)
    assert_untouched(model, before)
    assert method.state_dict()["progress"][0] == 0 and method.state_dict()["decision"] is True
    assert method.backward(closure_of(model, x, y))[1] is not None
    make(twin).backward(closure_of(twin, x, y))
    assert torch.equal(gradient(model), gradient(twin)) and method.state_dict()["progress"][0] == 1


def test_running_statistics_are_of_the_first_pass(make):
    training = Training(make)
    plain = copy.deepcopy(training.model)
    for step in range(1, 7):
        # At the same weights: what one forward pass makes of the statistics.
        plain.load_state_dict({**plain.state_dict(), **dict(training.model.named_parameters())})
        torch.manual_seed(step)
        plain(batch(seed=step)[0])
        training.steps(step)
        ours, theirs = dict(training.model.named_buffers()), dict(plain.named_buffers())
        assert_same_state(ours, theirs)


def test_micro_batches_are_one_batch(make):
    """The first pass of all of them, then the second one."""
    whole, parts = mlp(torch.float64), mlp(torch.float64)
    methods = [make(whole), make(parts)]
    for step in range(7):
        x, y = batch(24, torch.float64, seed=step)
        methods[0].backward(closure_of(whole, x, y))
        parts.zero_grad()

        def passes(x=x, y=y):
            for i in range(0, 24, 8):
                (F.cross_entropy(parts(x[i : i + 8]), y[i : i + 8]) / 3).backward()

        passes()
        if methods[1].decide():
            with methods[1].perturbed():
                passes()
        else:
            methods[1].reuse_()
        assert methods[0].sampled == methods[1].sampled
        torch.testing.assert_close(gradient(parts), gradient(whole), rtol=1e-10, atol=1e-13)


def test_autocast_changes_nothing_but_rounding(make):
    model, twin, (x, y) = mlp(), mlp(), batch()

    def closure():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    make(model).backward(closure)
    make(twin).backward(closure_of(twin, x, y))
    assert 0 < (gradient(model) - gradient(twin)).norm() < 0.05 * gradient(twin).norm()


@pytest.mark.parametrize("bad_pass", [0, 1])
def test_an_overflow_in_either_pass_skips_the_step_and_leaves_no_trace(make, bad_pass):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    model = mlp()
    optimizer, sam = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), make(model, scaler=scaler)
    skipped, overflowed = [], []
    for step in range(STEPS):
        x, y = batch(seed=step)
        passes, before = itertools.count(), [p.detach().clone() for p in model.parameters()]

        def closure(x=x, y=y, step=step, passes=passes):
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if next(passes) == bad_pass and step >= 3 and not overflowed:
                overflowed.append(step)
                loss = loss * INF
            scaler.scale(loss).backward()
            return loss

        sam.backward(closure)
        scaler.step(optimizer)
        scaler.update()
        assert all(p.isfinite().all() for p in model.parameters())
        skipped.append(all(map(torch.equal, before, model.parameters())))
    assert len(overflowed) == 1 and skipped == [step in overflowed for step in range(STEPS)]


def test_wrapped_as_an_optimizer_it_steps_and_resumes(make):
    def wrapped():
        model = mlp()
        return model, SAMOptimizer(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), make(model))

    model = mlp()
    plain, sam = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), make(model)
    (a, first), (b, second) = wrapped(), wrapped()
    for step in range(STEPS):
        x, y = batch(seed=step)
        sam.backward(closure_of(model, x, y))
        plain.step()
        if step == 5:  # the other goes on
            b.load_state_dict(a.state_dict())
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        net, optimizer = (a, first) if step < 5 else (b, second)
        optimizer.step(closure_of(net, x, y))
        assert all(same_bits(p, q) for p, q in zip(net.parameters(), model.parameters(), strict=True))


def test_states_that_do_not_fit_change_nothing(make):
    training = Training(make)
    training.steps(4)
    state, before = training.sam.state_dict(), copy.deepcopy(training.sam.state_dict())
    other = "VSAM" if training.sam._method != "VSAM" else "SAM"
    with pytest.raises(
        ValueError, match=f"method: expected a state of {training.sam._method}, got one of {other}"
    ):
        training.sam.load_state_dict({**state, "method": other})
    with pytest.raises(ValueError, match="version: expected 1, got 99"):
        training.sam.load_state_dict({**state, "version": 99})
    for key in state.keys() - {"method"}:
        with pytest.raises(KeyError, match=key):
            training.sam.load_state_dict({k: v for k, v in state.items() if k != key})
    assert_same_state(training.sam.state_dict(), before)
    with pytest.raises(ValueError, match="method: expected a state of"):
        next(m for name, m in METHODS.items() if name != training.sam._method)(mlp()).load_state_dict(state)


def test_torchs_defaults_change_nothing(make):
    models, batches = [mlp(), mlp()], [batch(seed=step) for step in range(STEPS)]

    def run(model):
        sam, optimizer = make(model), torch.optim.SGD(model.parameters(), 0.1)
        for x, y in batches:
            sam.backward(closure_of(model, x, y))
            optimizer.step()
        return sam.state_dict(), model.state_dict()

    plain = run(models[0])
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert_same_state(run(models[1]), plain)
    finally:
        torch.set_default_dtype(torch.float32)
