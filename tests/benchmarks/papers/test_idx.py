"""Fashion-MNIST's idx files: header, place, damage, and the namesakes of MNIST."""

import gzip
import hashlib
import struct

import pytest
import torch

pytest.importorskip("numpy")
pytest.importorskip("PIL")

from benchmarks.data import idx, load, write

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def files(folder, images, labels, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((IMAGES, images), (LABELS, labels)):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def images(*pictures, magic=0x803, rows=28):
    return struct.pack(">4I", magic, len(pictures), rows, 28) + b"".join(pictures)


def labels(*values, magic=0x801, count=None):
    return struct.pack(">2I", magic, len(values) if count is None else count) + bytes(values)


def picture(**pixels):
    values = bytearray(784)
    for name, value in pixels.items():
        values[int(name[1:])] = value
    return bytes(values)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_bytes_become_pixels(tmp_path, packed, place):
    files(tmp_path / place, images(picture(p1=7), picture(p28=8), picture(p783=255)), labels(9, 0, 3), packed)
    data = load("Fashion-MNIST", tmp_path, False, made=True)
    assert data.x.dtype == torch.uint8 and data.x.shape == (3, 1, 28, 28)
    assert data.x[0, 0, 0, 1] == 7 and data.x[1, 0, 1, 0] == 8 and data.x[2, 0, 27, 27] == 255
    assert data.x.sum() == 7 + 8 + 255
    assert data.y.dtype == torch.int64 and data.y.tolist() == [9, 0, 3] and data.classes == 10


def test_what_was_made_is_read(tmp_path):
    write("Fashion-MNIST", tmp_path, samples=80)
    train, test = (load("Fashion-MNIST", tmp_path, t, made=True) for t in (True, False))
    assert train.x.shape == (80, 1, 28, 28) and train.y.tolist() == [i % 10 for i in range(80)]
    assert test.x.shape == (20, 1, 28, 28) and not torch.equal(train.x[:20], test.x)


def test_the_bytes_md5_is_compared_packed_or_not(tmp_path, monkeypatch):
    """MNIST's files have these names too."""
    content = images(picture(p1=7)), labels(1)
    files(tmp_path, *content, packed=True)
    got = hashlib.md5(content[0]).hexdigest()
    with pytest.raises(ValueError, match=rf"{IMAGES}\.gz: expected md5 {idx.MD5[IMAGES]}, got {got}"):
        load("Fashion-MNIST", tmp_path, False)
    monkeypatch.setitem(idx.MD5, IMAGES, got)
    with pytest.raises(ValueError, match=rf"{LABELS}\.gz: expected md5 {idx.MD5[LABELS]}"):
        load("Fashion-MNIST", tmp_path, False)
    monkeypatch.setitem(idx.MD5, LABELS, hashlib.md5(content[1]).hexdigest())
    assert load("Fashion-MNIST", tmp_path, False).y.tolist() == [1]


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_a_missing_file_is_named(tmp_path, name):
    files(tmp_path, images(picture()), labels(1))
    (tmp_path / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"expected {name}\.gz or {name} \(md5 {idx.MD5[name]} .*Debian"
    ):
        load("Fashion-MNIST", tmp_path, False, made=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            (images(picture(), magic=0x801), labels(1)),
            rf"{IMAGES}: expected an idx header, 0x803 and N, 28, 28",
        ),
        ((images(picture(), rows=32), labels(1)), rf"{IMAGES}: .*got 0x803 and \[1, 32, 28\]"),
        ((b"\0\0\x08", labels(1)), rf"{IMAGES}: expected an idx header"),
        ((b"", labels(1)), rf"{IMAGES}: expected an idx header"),
        ((images(picture())[:-1], labels(1)), rf"{IMAGES}: expected 784 bytes .* for 1, got 783"),
        ((images(picture()) + b"\0", labels(1)), rf"{IMAGES}: expected 784 bytes .* for 1, got 785"),
        ((images(), labels()), rf"{IMAGES}: expected at least 1 entries, got 0"),
        (
            (images(picture()), labels(1, magic=0x803)),
            rf"{LABELS}: expected an idx header, 0x801 and N, got 0x803",
        ),
        ((images(picture()), labels(1, count=2)), rf"{LABELS}: expected 2 bytes .*got 1"),
        ((images(picture()), labels(1, 2)), rf"{LABELS}: expected 1 labels, as many as t10k images, got 2"),
        ((images(picture()), labels(10)), rf"{LABELS}: expected labels from 0 to 9, got 10 for image 0"),
    ],
)
def test_files_that_are_not_as_expected(tmp_path, content, message):
    files(tmp_path, *content)
    with pytest.raises(ValueError, match=message):
        load("Fashion-MNIST", tmp_path, False, made=True)


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-9], lambda c: b"PK" + c, lambda c: c[:30] + b"\0\0" + c[32:]]
)
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    files(tmp_path, images(bytes(range(196)) * 4), labels(1), packed=True)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{IMAGES}\.gz: expected a gzip file, got .*Get it once more"):
        load("Fashion-MNIST", tmp_path, False, made=True)


@pytest.mark.skipif(not idx.DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_debians_files():
    train, test = (load("Fashion-MNIST", idx.DEBIAN, t) for t in (True, False))
    assert train.y.bincount().tolist() == [6000] * 10 and test.y.bincount().tolist() == [1000] * 10
    levels = torch.arange(256).double() / 255
    share = train.x.flatten().bincount(minlength=256) / train.x.numel()
    mean = (share * levels).sum().item()
    std = (share * (levels - mean) ** 2).sum().sqrt().item()
    assert train.mean == (pytest.approx(mean, abs=5e-6),) and train.std == (pytest.approx(std, abs=5e-6),)
