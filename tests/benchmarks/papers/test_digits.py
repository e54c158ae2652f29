"""The digits: which images are trained on and which are tested on, wrong labels, the tail."""

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("sklearn")

from sklearn.datasets import load_digits

from benchmarks.data import digits


def pixels(images):
    return {row.numpy().tobytes() for row in images.x}


def truth():
    """Each image of scikit-learn's own to its label; none is there twice."""
    found = load_digits()
    x = torch.from_numpy(found.images).to(torch.uint8) * 15
    known = {row.numpy().tobytes(): int(y) for row, y in zip(x, found.target, strict=True)}
    assert len(known) == 1797
    return known


def right(images, known):
    return torch.tensor([known[row.numpy().tobytes()] for row in images.x]) == images.y


@pytest.mark.parametrize("kind", digits.KINDS)
@pytest.mark.parametrize("validation", [False, True])
def test_sizes_statistics_and_what_is_scored_on(kind, validation):
    train, test = digits.load(kind, 3, validation)
    assert train.x.dtype == torch.uint8 and train.x.shape[1:] == test.x.shape[1:] == (1, 8, 8)
    whole, known = digits.load(digits.PLAIN, 3, validation)[0], truth()
    assert len(test) == (320 if validation else 517) and len(whole) == (960 if validation else 1280)
    assert len(train) == len(train.x) == len(train.y) and train.classes == test.classes == 10
    assert not pixels(train) & pixels(test) and right(test, known).all()
    shares = test.y.bincount() / len(test) - torch.tensor(list(known.values())).bincount() / 1797
    assert shares.abs().amax() < 0.004  # a class is about a tenth of them, as in the whole
    scaled = whole.x.double() / 255
    for images in (train, test):  # of all training images, whichever are kept
        assert images.mean[0] == pytest.approx(scaled.mean().item())
        assert images.std[0] == pytest.approx(scaled.std().item())


def test_the_test_set_is_always_the_same_and_no_validation_image_is_in_it():
    tested = pixels(digits.load(digits.PLAIN, 0)[1])
    held_back = []
    for seed in range(4):
        for kind in digits.KINDS:
            assert pixels(digits.load(kind, seed)[1]) == tested
        train, validation = (pixels(part) for part in digits.load(digits.WRONG, seed, True))
        assert not (train | validation) & tested and len(train | validation) == 1280
        held_back.append(validation)
    assert len(held_back[0] & held_back[1]) < 160  # a quarter of them by chance


@pytest.mark.parametrize(("validation", "wrong"), [(False, 320), (True, 240)])
def test_a_quarter_of_the_labels_is_wrong(validation, wrong):
    known, changed, added = truth(), [], torch.zeros(10)
    for seed in range(3):
        train, _ = digits.load(digits.WRONG, seed, validation)
        clean, _ = digits.load(digits.PLAIN, seed, validation)
        assert torch.equal(train.x, clean.x) and right(clean, known).all()
        assert (~right(train, known)).sum() == wrong
        assert train.y.amin() == 0 and train.y.amax() == 9
        changed.append(~right(train, known))
        added += ((train.y - clean.y) % 10)[changed[-1]].bincount(minlength=10)
    assert added[0] == 0 and added[1:].amin() > 0.6 * wrong / 3  # each other class about as often
    assert not torch.equal(changed[0], changed[1])
    again = digits.load(digits.WRONG, 2, validation)[0]
    assert torch.equal(again.y, train.y)


@pytest.mark.parametrize("validation", [False, True])
def test_the_tail(validation):
    known, kept = truth(), []
    for seed in (0, 1):
        train, _ = digits.load(digits.LONG_TAILED, seed, validation)
        clean, _ = digits.load(digits.PLAIN, seed, validation)
        counts, most = train.y.bincount(minlength=10), len(clean) / 10
        for i, count in enumerate(counts.tolist()):  # 50 ** (-i / 9) of a tenth, or all that there are
            assert count == min(round(most * 50 ** (-i / 9)), int((clean.y == i).sum()))
        assert 40 < counts[0] / counts[9] < 60
        assert right(train, known).all() and pixels(train) <= pixels(clean)
        kept.append(pixels(train))
    assert kept[0] != kept[1]


@pytest.mark.parametrize("kind", ["digit", "Digits", "", None])
def test_another_name(kind):
    with pytest.raises(ValueError, match=r"kind: expected one of digits, .*long-tailed, got "):
        digits.load(kind, 0)
