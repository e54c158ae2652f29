"""CIFAR's archives: bytes to pixels, pickles that are only CIFAR's, and files that are not whole."""

import hashlib
import os
import pickle
import re
import shutil
import tarfile
from dataclasses import replace

import pytest
import torch

np = pytest.importorskip("numpy")
pytest.importorskip("PIL")

from benchmarks.data import cifar, load, python2_pickle, write  # noqa: E402

NAMES = ["CIFAR-10", "CIFAR-100"]

# Written by cPickle of Python 2.7.18 with numpy 1.16.6, protocol 2.
BATCH = {
    "data": np.arange(250, 258).astype("uint8").reshape(2, 4),
    "labels": [6, 9],
    "batch_label": "training batch 1 of 5",
    "filenames": ["a_0.png", "a_1.png"],
}
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01"
DTYPE = b"\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNN"
DTYPE += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02"
    + ARRAY
    + b"K\x02K\x04"
    + DTYPE
    + b"U\x08\xfa\xfb\xfc\xfd\xfe\xff\x00\x01tb"
    b"U\x06labelsq\x08]q\t(K\x06K\teU\x0bbatch_labelq\nU\x15training batch 1 of 5q\x0b"
    b"U\tfilenamesq\x0c]q\r(U\x07a_0.pngq\x0eU\x07a_1.pngq\x0feu."
)
LONG = "9b0bda2d7b3ef223425ac5d89860a10e"  # md5 of 300 rows there, with names and labels beyond 255


def archive(folder, name, python):
    """Packs what `write` made, as it is distributed; the folder goes."""
    form = cifar.ARCHIVES[name][python]
    with tarfile.open(folder / form.name, "w:gz") as tar:
        tar.add(folder / form.folder, form.folder)
    shutil.rmtree(folder / form.folder)
    return folder / form.name


def both(folder, name, **options):
    return [load(name, folder, train, **options) for train in (True, False)]


def test_the_made_pickles_are_python_2s_byte_for_byte():
    assert python2_pickle.dumps(BATCH) == PYTHON_2
    many = {
        "data": (np.arange(1200) % 256).astype("uint8").reshape(300, 4),
        "labels": list(range(300)),
        "batch_label": "training batch 1 of 5",
        "filenames": [f"a_{i}.png" for i in range(300)],
    }
    assert hashlib.md5(python2_pickle.dumps(many)).hexdigest() == LONG


# Red, green and blue plane, each row by row: the first row's second pixel of each, and the last one of all.
PLACES = [((0, 0, 1), 1), ((0, 1, 0), 32), ((1, 0, 0), 1024), ((2, 0, 1), 2049), ((2, 31, 31), 3071)]


@pytest.mark.parametrize(("place", "byte"), PLACES)
def test_bytes_become_pixels(tmp_path, place, byte):
    """A record, and a pickle written by hand, with one byte that is not 0."""
    pixels = bytearray(3072)
    pixels[byte] = 201
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for i in range(1, 6):
        (tmp_path / f"cifar-10-batches-bin/data_batch_{i}.bin").write_bytes(bytes([i]) + pixels)
    data = load("CIFAR-10", tmp_path, True, made=True)
    assert data.x.dtype == torch.uint8 and data.y.dtype == torch.int64
    assert data.y.tolist() == [1, 2, 3, 4, 5] and data.x.shape == (5, 3, 32, 32) and data.classes == 10
    for x in data.x:
        assert x[place] == 201 and x.sum() == 201

    (tmp_path / "cifar-100-python").mkdir()
    content = (
        b"\x80\x02}q\x01(U\x04dataq\x02" + ARRAY + b"K\x01M\x00\x0c" + DTYPE + b"T\x00\x0c\x00\x00" + pixels
    )
    content += b"tbU\rcoarse_labelsq\x08]q\tK\x03aU\x0bfine_labelsq\n]q\x0bK\x40au."
    (tmp_path / "cifar-100-python/train").write_bytes(content)
    data = load("CIFAR-100", tmp_path, True, made=True)
    assert data.y.tolist() == [64] and data.classes == 100  # the label of 100, not the one of 20
    assert data.x[0][place] == 201 and data.x.sum() == 201


def test_records_of_cifar_100_begin_with_the_coarse_label(tmp_path):
    (tmp_path / "cifar-100-binary").mkdir()
    (tmp_path / "cifar-100-binary/test.bin").write_bytes(b"\x13\x63" + bytes(3071) + b"\x09")
    data = load("CIFAR-100", tmp_path, False, made=True)
    assert data.y.tolist() == [99] and data.x[0, 2, 31, 31] == 9 and data.x.sum() == 9


@pytest.mark.parametrize("name", NAMES)
def test_all_forms_hold_the_same(tmp_path, name):
    forms = {}
    for python in (False, True):
        for packed in (False, True):
            folder = tmp_path / f"{python}{packed}"
            write(name, folder, samples=120, python=python)
            if packed:
                archive(folder, name, python)
            forms[folder.name] = both(folder, name, made=True)
    # The folder's own path will do as well.
    forms["own"] = both(tmp_path / "FalseFalse" / cifar.ARCHIVES[name][0].folder, name, made=True)
    for train, test in forms.values():
        assert train.x.shape == (120, 3, 32, 32) and test.x.shape == (30, 3, 32, 32)
        assert torch.equal(train.x, forms["own"][0].x) and torch.equal(test.x, forms["own"][1].x)
        assert train.y.tolist() == [i % train.classes for i in range(120)]
        assert test.y.tolist() == [i % train.classes for i in range(30)]
    assert not torch.equal(train.x[:30], test.x)


def test_binary_files_come_before_pickles(tmp_path):
    write("CIFAR-10", tmp_path, samples=20)
    write("CIFAR-10", tmp_path, samples=40, python=True)
    assert len(load("CIFAR-10", tmp_path, True, made=True)) == 20


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_archive_of_another_md5_is_refused(tmp_path, monkeypatch, name, python):
    write(name, tmp_path, samples=40, python=python)
    packed, form = archive(tmp_path, name, python), cifar.ARCHIVES[name][python]
    got = hashlib.md5(packed.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"{re.escape(str(packed))}: expected md5 {form.md5}, got {got}"):
        load(name, tmp_path, True)
    # With this md5, its number of images is looked at, and is right.
    each = 40 // len(form.train)
    right = replace(form, md5=got, train=dict.fromkeys(form.train, each), test=dict.fromkeys(form.test, 10))
    monkeypatch.setitem(cifar.ARCHIVES, name, (right,))
    train, test = both(tmp_path, name)
    assert len(train) == 40 and len(test) == 10
    monkeypatch.setitem(cifar.ARCHIVES, name, (replace(right, test=form.test),))
    with pytest.raises(ValueError, match="expected 10,000 images, got 10"):
        load(name, tmp_path, False)


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_unpacked_folder_has_to_be_whole(tmp_path, name, python):
    write(name, tmp_path, samples=40, python=python)
    form = cifar.ARCHIVES[name][python]
    first = next(iter(form.train))
    got = 40 // len(form.train)
    with pytest.raises(ValueError, match=rf"{first}: expected {form.train[first]:,} images, got {got}$"):
        load(name, tmp_path, True)
    last = tmp_path / form.folder / list(form.train)[-1]
    last.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{form.folder}: expected {last.name}, got nothing of it; get"
    ):
        load(name, tmp_path, True, made=True)
    assert len(load(name, tmp_path, False, made=True)) == 10


def test_without_data_the_message_says_what_to_get(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        load("CIFAR-10", tmp_path, True)
    assert all(f"{form.name} (md5 {form.md5})" in str(raised.value) for form in cifar.ARCHIVES["CIFAR-10"])
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in str(raised.value)
    with pytest.raises(FileNotFoundError, match="nowhere: expected a folder with CIFAR-100"):
        load("CIFAR-100", tmp_path / "nowhere", True)
    with pytest.raises(ValueError, match=r"name: expected one of CIFAR-10, CIFAR-100, .*got 'cifar'"):
        load("cifar", tmp_path, True)


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.9])
def test_a_damaged_archive_is_named(tmp_path, keep):
    write("CIFAR-10", tmp_path, samples=20)
    packed = archive(tmp_path, "CIFAR-10", False)
    content = packed.read_bytes()
    packed.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz.*expected .*got .*"):
        both(tmp_path, "CIFAR-10", made=True)


def test_an_archive_without_a_file_is_named(tmp_path):
    write("CIFAR-10", tmp_path, samples=20)
    (tmp_path / "cifar-10-batches-bin/data_batch_3.bin").unlink()
    archive(tmp_path, "CIFAR-10", False)
    with pytest.raises(
        ValueError, match=r"cifar-10-binary.tar.gz: expected .* got KeyError.*data_batch_3\.bin"
    ):
        load("CIFAR-10", tmp_path, True, made=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(3072), "expected records of 3073 bytes, got 3,072 bytes"),
        (b"", "expected at least 1 images, got 0"),
        (bytes(3073) + b"\x0a" + bytes(3072), "expected labels from 0 to 9, got 10 for image 1"),
    ],
)
def test_records_that_are_none(tmp_path, content, message):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin/test_batch.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"test_batch\.bin: {message}"):
        load("CIFAR-10", tmp_path, False, made=True)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


ROW = np.zeros((1, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps({b"data": ROW, b"labels": [1]}, 2),
            r"one that names (numpy\._core|_codecs|numpy\.core)",
        ),
        (pickle.dumps({b"data": ROW, b"labels": [1]}, 4), r"one that names numpy\._?core"),
        (b"cbuiltins\neval\nU\x011\x85R.", r"one that names builtins\.eval"),
        (b"c__builtin__\neval\nU\x011\x85R.", r"one that names __builtin__\.eval"),
        (b"cnumpy\nload\n.", r"one that names numpy\.load"),
        (b"cnumpy\nndarray.tofile\n.", r"one that names numpy\.ndarray\.tofile"),
        (b"U\x01aQ.", r"persistent"),
        (python2_pickle.dumps({"data": ROW, "labels": [1, 2]})[:-20], r"is the file damaged"),
        (b"", r"EOFError"),
        (
            python2_pickle.dumps(BATCH),
            r"b'data', a uint8 array of shape \[N, 3072\], got uint8 of shape \[2, 4\]",
        ),
        (
            python2_pickle.dumps({"data": ROW, "labels": [1, 2]}),
            r"b'labels', a list of 1 ints, got a list of 2",
        ),
        (python2_pickle.dumps({"data": ROW, "labels": "a"}), r"b'labels', a list of 1 ints, got b'a'"),
        (python2_pickle.dumps({"data": ROW, "fine_labels": [1]}), r"b'labels', a list of 1 ints, got None"),
        (python2_pickle.dumps({"labels": [1, 2]}), r"b'data', a uint8 array .*got None"),
        (b"]q\x01.", r"b'data', a uint8 array .*got None"),
        (
            python2_pickle.dumps({"data": ROW, "labels": [11]}),
            r"labels from 0 to 9, got 11 for image 0",
        ),
    ],
)
def test_pickles_that_are_not_cifars(tmp_path, content, message):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=rf"test_batch: expected .*{message}"):
        load("CIFAR-10", tmp_path, False, made=True)


def test_a_pickle_runs_nothing(tmp_path):
    harmful, target = tmp_path / "cifar-10-batches-py/test_batch", tmp_path / "harm"
    harmful.parent.mkdir()
    harmful.write_bytes(pickle.dumps(Harmful(str(target)), 2))
    with pytest.raises(ValueError, match=r"test_batch: .*one that names (posix|nt)\.mkdir.*was not run"):
        load("CIFAR-10", tmp_path, False, made=True)
    assert not target.exists()
