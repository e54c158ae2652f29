"""Made data sets: the same bytes for the same seed, and something in them to learn."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("PIL")
pytest.importorskip("scipy")

from benchmarks.data import DATASETS, load, normalise, write
from benchmarks.data.made_files import SAMPLES


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_seed_writes_the_same_bytes(tmp_path, monkeypatch, name):
    """At any time: gzip's and MATLAB's files would say when they were written."""
    for second, (folder, seed) in enumerate((("a", 0), ("b", 0), ("c", 1))):
        monkeypatch.setattr("time.time", lambda second=second: 1e9 + second)
        monkeypatch.setattr("time.asctime", lambda second=second: f"second {second}")
        write(name, tmp_path / folder, seed=seed)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")


@pytest.mark.parametrize("name", DATASETS)
def test_a_linear_network_learns_them(tmp_path, name):
    write(name, tmp_path)
    train, test = (load(name, tmp_path, part, made=True) for part in (True, False))
    assert len(train) == SAMPLES[name] and len(test) == SAMPLES[name] // 4
    x = normalise(train.x, train.mean, train.std).flatten(1)
    weight = torch.zeros(train.classes, x.shape[1], requires_grad=True)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(x @ weight.T, train.y)
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, weight)
        weight.data -= 0.005 * gradient
    assert losses[-1] < 0.75 * losses[0]
    right = (normalise(test.x, test.mean, test.std).flatten(1) @ weight.T).argmax(1) == test.y
    assert right.double().mean() > 0.6, right.double().mean()
