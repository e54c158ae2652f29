"""ESAM: which tensors it draws and which samples it keeps."""

import pytest
import torch
from baselines.drawn import draw, drawn
from baselines.flat import gradient, weights
from baselines.selecting import bowl, parabolas
from torch import nn

from ausam_ext.baselines import ESAM


def test_samples_kept_as_worked_by_hand(backend):
    """l = (.5, 2, 4.5, 8), g = -.5, e = -.5, there l = (1.125, 3.125, 6.125, 6.125): the losses of t = 3 and
    t = 2 rise most, by 1.625 and 1.125, and at w = -.5 their mean gradient is -.5 - 2.5 = -3."""
    model, losses = parabolas()
    sam = ESAM(model, 0.5, beta=1.0, gamma=0.5)
    loss, loss_perturbed = sam.backward(losses)
    assert loss.tolist() == [0.5, 2.0, 4.5, 8.0]
    assert sam.positions.tolist() == [1, 2] and sam.positions.dtype == torch.int64
    assert losses.passes[2][0].tolist() == [1, 2]
    torch.testing.assert_close(loss_perturbed, torch.tensor([3.125, 6.125], dtype=torch.float64))
    torch.testing.assert_close(model.w[0].grad, torch.tensor([-3.0], dtype=torch.float64))
    assert weights(model).tolist() == [0.0]


def test_the_change_counts_with_its_sign():
    """|S| = (.625, 1.125, 1.625, 1.875) would keep t = -4, whose loss falls."""
    model, losses = parabolas()
    sam = ESAM(model, 0.5, beta=1.0, gamma=0.75)
    sam.backward(losses)
    assert sam.positions.tolist() == [0, 1, 2]


def test_what_is_to_be_raised_is_worst_where_it_falls():
    """The same problem with its sign turned: the same samples, the opposite gradient."""
    model, losses = parabolas(sign=-1.0)
    sam = ESAM(model, 0.5, beta=1.0, gamma=0.5, maximize=True)
    sam.backward(losses)
    assert sam.positions.tolist() == [1, 2]
    torch.testing.assert_close(model.w[0].grad, torch.tensor([3.0], dtype=torch.float64))


def test_tensors_drawn_as_worked_by_hand(backend):
    """w = (3, 1), g = (3, 4). Of w2 alone g = (0, 4), so e = .5 (0, 4) / 4 / .5 = (0, 1), and at (3, 2) the
    gradient is (3, 8). Of both, as in the first step, e = .5 (3, 4) / 5 / .5 = (.6, .8): (3.6, 7.2)."""
    model, losses = bowl()
    sam = ESAM(model, 0.5, beta=0.5, gamma=1.0)
    assert drawn(sam) == [True, True]
    for which, there, expected in (
        ([True, True], [3.6, 1.8], [3.6, 7.2]),
        ([False, True], [3.0, 2.0], [3.0, 8.0]),
    ):
        draw(sam, which)
        sam.backward(losses)
        assert torch.cat(losses.passes[-1][1]).tolist() == pytest.approx(there, abs=1e-11)
        assert gradient(model).tolist() == pytest.approx(expected, abs=1e-11)
        assert weights(model).tolist() == [3.0, 1.0]


def test_each_tensor_is_drawn_with_its_probability():
    """And by a generator of its own: neither torch's is read, nor does anything but the seed matter."""
    layers = 50
    before, counts, sequences = torch.get_rng_state(), torch.zeros(2 * layers), []
    for seed in (3, 3, 4):
        torch.manual_seed(len(sequences))
        sam = ESAM(nn.Sequential(*(nn.Linear(1, 1) for _ in range(layers))), beta=0.3, seed=seed)
        draws = []
        for _ in range(40):
            sam.backward(lambda positions, sam=sam: sam.model(torch.ones(2, 1)).flatten())
            draws.append(drawn(sam))
        sequences.append(draws)
        counts += torch.tensor(draws).sum(0)
    assert sequences[0] == sequences[1] != sequences[2]
    torch.set_rng_state(before)
    # 120 draws of each tensor, 80 of them twice the same; five standard deviations, and of all 12,000.
    assert ((counts / 120 - 0.3).abs() < 5 * (0.3 * 0.7 / 60) ** 0.5).all()
    assert abs(counts.mean() / 120 - 0.3) < 5 * (0.3 * 0.7 / 6000) ** 0.5


def test_losses_of_16_bits_are_compared_exactly():
    """The first rises by 5 - 1.0078125 = 3.9921875, which bfloat16 would round to the 4 of the next two."""
    model = nn.Linear(1, 1, bias=False)
    at = torch.tensor([[1.0078125, 512.0, 8.0, 1.0], [5.0, 516.0, 12.0, 1.0]], dtype=torch.bfloat16)
    calls = []

    def losses(positions):
        calls.append(positions)
        loss = at[int(len(calls) > 1)] + 0 * model.weight.sum().to(torch.bfloat16)
        return loss if positions is None else loss[positions]

    sam = ESAM(model)
    sam.backward(losses)
    assert sam.positions.tolist() == [1, 2]
