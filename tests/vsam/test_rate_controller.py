"""RateController against vSAM Eq. 8 to 15 written out once more in numpy."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ausam_ext import RateController


def oracle(psf, sgd, s, window, slices, alpha, max_rate):
    """s for the next window from the whole history of observations."""
    psf, sgd = np.asarray(psf, np.float64), np.asarray(sgd, np.float64)
    n = len(psf)
    if n < 2 * slices:
        return s

    def v(i):  # Eq. 8 over the N observations that end with i
        last = np.sort(psf[max(0, i - window + 1) : i + 1])
        return np.mean([np.var(part, ddof=1) for part in np.array_split(last, slices)])

    def mean_change(x):  # Eq. 9 and 10, 12 and 13
        c = [(b - a) / a if a != 0 and np.isfinite([a, b]).all() else 0.0 for a, b in pairwise(x)]
        return float(np.clip(np.mean(c), -1, 1)) if c else 0.0

    recent = range(max(0, n - window), n)
    with np.errstate(all="ignore"):
        variances = [v(i) for i in recent if i + 1 >= 2 * slices]
        ratios = psf[list(recent)] / sgd[list(recent)]
    s = s * (1 + alpha * mean_change(variances) + alpha * mean_change(list(ratios)))
    return float(np.clip(s, 1, max_rate * window))


@pytest.mark.parametrize(
    ("window", "slices", "alpha", "max_rate"), [(50, 5, 0.1, 0.8), (10, 3, 0.5, 0.35), (6, 2, 0.4, 1.0)]
)
@pytest.mark.parametrize("kind", [float, torch.tensor, lambda x: torch.tensor(x, dtype=torch.float64)])
def test_follows_the_equations(backend, window, slices, alpha, max_rate, kind):
    rng = np.random.default_rng(0)
    controller = RateController(window, slices, alpha, max_rate, initial_samples=1)
    psf, sgd, s, seen = [], [], 1.0, []
    for _ in range(12):
        for _ in range(int(rng.integers(0, window))):  # few and many observations between updates
            a, b = kind(float(rng.lognormal(0, 0.6))), kind(float(rng.lognormal(1, 0.3)))
            controller.observe(a, b)
            psf.append(float(a))
            sgd.append(float(b))
        s = oracle(psf, sgd, s, window, slices, alpha, max_rate)
        assert controller.update() == pytest.approx(s, rel=1e-9)
        assert controller.s == pytest.approx(s, rel=1e-9)
        assert controller.rate == controller.s / window
        seen.append(s)
    assert len(set(seen)) > 3


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
@pytest.mark.parametrize("which", [0, 1])
def test_zero_and_non_finite_norms_contribute_nothing(backend, value, which):
    rng = np.random.default_rng(1)
    pairs = rng.lognormal(0, 0.3, (30, 2))
    pairs[[3, 12, 13, 29], which] = value
    controller = RateController(20, 2, 0.3, 0.8, initial_samples=5)
    for psf, sgd in pairs:
        controller.observe(float(psf), float(sgd))
    with np.errstate(all="ignore"):
        expected = oracle(*pairs.T, 5.0, 20, 2, 0.3, 0.8)
    assert controller.update() == pytest.approx(expected, rel=1e-9)
    assert math.isfinite(controller.s)


def test_fewer_than_two_slices_of_observations_leave_s():
    controller = RateController(50, 5, initial_samples=7)
    for i in range(9):
        controller.observe(float(i + 1), 1.0)
        assert controller.update() == 7
    controller.observe(10.0, 1.0)
    assert controller.update() > 7


def test_s_stays_between_one_and_the_maximum():
    rising, falling = RateController(10, 2, alpha=5.0), RateController(10, 2, alpha=5.0, initial_samples=8)
    for i in range(40):
        rising.observe(1.5**i, 1.0)
        falling.observe(0.5**i, 1.0)
    for _ in range(20):
        rising.update()
        falling.update()
    assert rising.s == 8 and falling.s == 1


def test_a_stationary_series_drifts_up_as_published():
    """The mean of relative changes is biased: by e^(sigma^2) - 1, 9.4 %, for a lognormal series of sigma 0.3.
    So s grows by about 1 % per window; log-ratios would not drift, nor give the published runs."""
    rng = np.random.default_rng(2)
    controller = RateController(50, 5, alpha=0.1)
    for _ in range(20):
        for x in rng.lognormal(0, 0.3, 50):
            controller.observe(float(x), 1.0)
        controller.update()
    assert 1.1 < controller.s < 1.4


def test_observing_does_not_alias_a_tensor_that_changes_later():
    a, b = RateController(10, 2, 1.0), RateController(10, 2, 1.0)
    psf, sgd = torch.zeros(()), torch.ones(())
    for i in range(8):
        psf.fill_(i + 1.0)  # as a captured graph overwrites its outputs
        a.observe(psf, sgd)
        b.observe(i + 1.0, 1.0)
    assert a.update() == b.update() > 1


def test_state_goes_through_a_file(tmp_path):
    a = RateController(10, 2, 1.0)
    for i in range(15):
        a.observe(torch.tensor(float(i + 1)), torch.tensor(2.0))
    a.update()
    torch.save(a.state_dict(), tmp_path / "state.pt")
    b = RateController(10, 2, 1.0)
    b.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for c in (a, b):
        c.observe(3.0, 1.0)
    assert a.update() == b.update()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"window": 9}, ValueError, "window: .*10.*9"),
        ({"window": 50.0}, TypeError, "window: .*50.0"),
        ({"slices": 0}, ValueError, "slices: .*0"),
        ({"alpha": -0.1}, ValueError, "alpha: .*-0.1"),
        ({"alpha": math.nan}, ValueError, "alpha: .*nan"),
        ({"max_rate": 0}, ValueError, "max_rate: .*0"),
        ({"max_rate": 1.5}, ValueError, "max_rate: .*1.5"),
        ({"max_rate": 0.01}, ValueError, "max_rate: .*0.01"),
        ({"initial_samples": 0}, ValueError, "initial_samples: .*40.*0"),
        ({"initial_samples": 41}, ValueError, "initial_samples: .*40.*41"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        RateController(**arguments)


def test_numpy_scalars_are_numbers():
    a = RateController(np.int64(10), np.int32(2), np.float32(0.5), np.float64(0.5), np.int64(2))
    b = RateController(10, 2, 0.5, 0.5, 2)
    for i in range(15):
        a.observe(np.float32(i + 1), np.float64(2.0))
        b.observe(i + 1.0, 2.0)
    assert a.update() == b.update() and repr(a) == repr(b)
    assert type(a.s) is float and type(a.window) is int


def test_repr_shows_the_settings_and_where_it_stands():
    assert repr(RateController(10, 2, initial_samples=3)) == (
        "RateController(window=10, slices=2, alpha=0.1, max_rate=0.8, s=3)"
    )


def test_bad_observations():
    controller = RateController()
    with pytest.raises(ValueError, match=r"psf_norm: .*\(2,\)"):
        controller.observe(torch.ones(2), torch.ones(()))
    with pytest.raises(TypeError):
        controller.observe("high", 1.0)
