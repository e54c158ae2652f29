"""What SAF takes and what it refuses: devices, indices, settings, arguments, states."""

import copy

import pytest
import torch
from baselines.past_logits import CLASSES, N, always, rows, visit
from helpers import assert_same_state

from ausam_ext.baselines import SAF


@pytest.mark.parametrize("on_table", [torch.int32, torch.int64])
def test_any_device_and_index(device, on_table):
    """The table beside the logits, and on the CPU."""
    index, z = torch.arange(N, dtype=on_table), [rows(seed=seed) for seed in (0, 1)]
    on_cpu = always()
    tables = [always(device=device), always(device="cpu")]
    visit(on_cpu, 0, range(N), z[0])
    expected = visit(on_cpu, 2, range(N), z[1])
    for saf in tables:
        for at in (index, index.to(device)):
            for epoch, logits in ((0, z[0]), (2, z[1])):
                saf.set_epoch(epoch)
                term = saf.penalty(at, logits.to(device))
            assert term.device.type == device
            torch.testing.assert_close(term.cpu(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("wrong", [[-1, 0], [0, N], [2**40, 1]])
def test_an_index_outside_the_table(wrong):
    saf = always()
    visit(saf, 0, [0, 1], rows(2))
    before = copy.deepcopy(saf.state_dict())
    with pytest.raises(IndexError, match=rf"index: .* outside the table of {N} samples"):
        saf.penalty(torch.tensor(wrong), rows(2))
    assert_same_state(saf.state_dict(), before)


@pytest.mark.parametrize("then", ["set_epoch", "state_dict"])
def test_an_index_outside_the_table_of_a_gpu_is_told_later(device, then):
    """On the CPU: what comes after the check that a GPU does not make."""
    saf, index = always(device=device), torch.tensor([-1, 3, N, N + 7], device=device)
    saf.set_epoch(0)
    saf._table.store(0, torch.arange(N, device=device), rows().to(device))
    before = saf._table._rows.clone()
    index = saf._table.reachable(index)
    saf._table.store(0, index, torch.cat([rows(1, seed=1), rows()[3:4], rows(2, seed=2)]).to(device))
    assert_same_state(saf._table._rows, before)
    with pytest.raises(IndexError, match=r"index: 3 entries .* outside the table"):
        saf.set_epoch(2) if then == "set_epoch" else saf.state_dict()
    saf.set_epoch(2)  # told once
    past = saf._table.at(0, index)
    assert past.isnan().all(1).tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples: expected an integer at least 1, got 0"),
        ({"num_classes": 1}, ValueError, "num_classes: expected an integer at least 2, got 1"),
        ({"num_classes": 2.5}, TypeError, "num_classes: expected an integer"),
        ({"lam": -1}, ValueError, "lam: expected a finite number not below 0, got -1"),
        ({"lam": None}, TypeError, "lam: expected a number"),
        ({"tau": 0}, ValueError, "tau: expected a finite number above 0, got 0"),
        ({"delay": 0}, ValueError, "delay: expected an integer at least 1, got 0"),
        ({"start_epoch": -2}, ValueError, "start_epoch: expected an integer at least -1, got -2"),
        ({"dtype": torch.int64}, TypeError, "dtype: expected one of torch.float32, .*got torch.int64"),
        ({"dtype": "float32"}, TypeError, "dtype: expected one of torch.float32, .*got 'float32'"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        SAF(**{"num_samples": N, "num_classes": CLASSES, **options})


@pytest.mark.parametrize(
    ("index", "logits", "error", "message"),
    [
        ([0, 1], rows(2), TypeError, r"index: expected a tensor of int64 or int32, got \[0, 1\]"),
        (torch.zeros(2), rows(2), TypeError, "index: expected a tensor of int64 or int32, got torch.float32"),
        (torch.zeros(2, 1, dtype=torch.int64), rows(2), ValueError, r"index: expected 1 dimension\(s\)"),
        (torch.arange(2), None, TypeError, "logits: expected a tensor"),
        (torch.arange(2), torch.zeros(2, CLASSES, dtype=torch.int64), TypeError, "logits: expected a tensor"),
        (torch.arange(2), rows(2)[None], ValueError, r"logits: expected 2 dimension\(s\)"),
        (
            torch.arange(3),
            rows(2),
            ValueError,
            r"logits: expected a row for each index .*\(3, 4\), got \(2, 4\)",
        ),
        (torch.arange(2), rows(2)[:, :3], ValueError, r"logits: .*each class, \(2, 4\), got \(2, 3\)"),
    ],
)
def test_bad_arguments(index, logits, error, message):
    saf = always()
    before = copy.deepcopy(saf.state_dict())
    with pytest.raises(error, match=message):
        saf.penalty(index, logits)
    with pytest.raises(ValueError, match="epoch: expected an integer at least 0, got -1"):
        saf.set_epoch(-1)
    assert_same_state(saf.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"version": 9}, ValueError, "version: expected 1, got 9"),
        ({"method": "MESA"}, ValueError, "method: expected SAF, got a state of MESA"),
        ({"epoch": -1}, ValueError, "epoch: expected an integer at least 0, got -1"),
        ({"logits": torch.zeros(N - 1, 3, CLASSES).double()}, ValueError, r"logits: .*got \(22, 3, 4\)"),
        ({"logits": torch.zeros(N, 3, CLASSES)}, TypeError, "logits: expected a tensor of float64"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, error, message):
    saf, other = always(), always()
    visit(saf, 4, [0, 1], rows(2))
    before = copy.deepcopy(saf.state_dict())
    with pytest.raises(error, match=message):
        saf.load_state_dict({**other.state_dict(), **change})
    for name in before:
        state = other.state_dict()
        del state[name]
        with pytest.raises(KeyError, match=name):
            saf.load_state_dict(state)
    assert_same_state(saf.state_dict(), before)
