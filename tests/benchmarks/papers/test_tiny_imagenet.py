"""Tiny-ImageNet: one numbering for both parts, gray images, zip or folder, and files that are not whole."""

import io
import re
import shutil
import zipfile

import pytest
import torch

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

from benchmarks.data import load, tiny_imagenet, write  # noqa: E402

WNIDS = ["n01000001", "n02000002", "n03000003"]  # as `write` has them


@pytest.fixture
def root(tmp_path):
    """12 images of each of 3 classes to train on, 9 to test on."""
    write("Tiny-ImageNet", tmp_path, samples=36)
    return tmp_path / "tiny-imagenet-200"


def both(folder, **options):
    return [load("Tiny-ImageNet", folder, train, **options) for train in (True, False)]


def pack(root):
    packed = root.parent / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root.parent).as_posix())
    shutil.rmtree(root)
    return packed


def pixels(path):
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)


def test_classes_are_numbered_by_sorted_names_in_both_parts(root):
    assert (root / "wnids.txt").read_text().split() != WNIDS  # not sorted, as in the real one
    train, test = both(root.parent, made=True)
    assert (
        train.x.dtype == torch.uint8 and train.x.shape == (36, 3, 64, 64) and test.x.shape == (9, 3, 64, 64)
    )
    assert train.y.dtype == torch.int64 and train.classes == test.classes == 3
    assert train.y.tolist() == [i // 12 for i in range(36)]
    for i, x in enumerate(train.x):  # numbers are numbers: 10 comes after 2
        wnid = WNIDS[i // 12]
        assert torch.equal(x, pixels(root / f"train/{wnid}/images/{wnid}_{i % 12}.JPEG"))
    lines = (root / "val/val_annotations.txt").read_text().splitlines()
    for line, x, y in zip(lines, test.x, test.y, strict=True):
        file, wnid, *box = line.split("\t")
        assert torch.equal(x, pixels(root / f"val/images/{file}")) and WNIDS[y] == wnid and len(box) == 4
    # Both parts mean the same class by a number: a class's images are like its mean.
    means = torch.stack([train.x[train.y == label].float().mean(0) for label in range(3)])
    nearest = ((test.x[:, None].float() - means) ** 2).flatten(2).sum(2).argmin(1)
    assert torch.equal(nearest, test.y) and test.y.unique().tolist() == [0, 1, 2]


def test_the_order_of_wnids_changes_nothing(root):
    before = both(root.parent, made=True)
    (root / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    for a, b in zip(before, both(root.parent, made=True), strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def test_gray_images_have_three_channels(root):
    path = root / "train/n01000001/images/n01000001_0.JPEG"
    with Image.open(path) as file:
        assert file.mode == "L"
        gray = torch.from_numpy(np.array(file))
    train, _ = both(root.parent, made=True)
    assert torch.equal(train.x[0], gray.expand(3, -1, -1))
    assert not torch.equal(train.x[1][0], train.x[1][1])


def test_zip_and_folder_hold_the_same(root):
    unpacked = both(root.parent, made=True) + both(root, made=True)
    packed = pack(root).parent
    for a, b in zip(unpacked, both(packed, made=True) * 2, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def test_a_zip_file_of_another_md5_is_refused(root):
    with pytest.raises(ValueError, match=rf"{pack(root)}: expected md5 {tiny_imagenet.MD5}, got \w{{32}} \("):
        both(root.parent)


def test_a_damaged_zip_file_names_the_image(root):
    packed = pack(root)
    content = packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        place = archive.getinfo("tiny-imagenet-200/train/n02000002/images/n02000002_7.JPEG").header_offset
    packed.write_bytes(content[: place + 300] + b"?!?!" + content[place + 304 :])
    with pytest.raises(
        ValueError, match=r"zip/train/n02000002/images/n02000002_7\.JPEG: .*CRC.*Get it once more"
    ):
        both(root.parent, made=True)
    packed.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"tiny-imagenet-200\.zip: expected a zip file, got BadZipFile"):
        both(root.parent, made=True)


MISSING = [
    "wnids.txt",
    "train/n02000002/images/n02000002_4.JPEG",  # in the middle
    "train/n03000003/images",
    "val/val_annotations.txt",
    "val/images/val_3.JPEG",
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", MISSING)
def test_a_missing_file_is_named(root, name, packed):
    if (root / name).is_dir():
        shutil.rmtree(root / name)
        name = "train/n03000003/images/n03000003_0.JPEG"
    else:
        (root / name).unlink()
    place = pack(root) if packed else root
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"{place}: expected {name}, got nothing of it; get")
    ):
        both(root.parent, made=True)


def test_the_real_one_has_200_classes_500_images_each_and_10000_to_test_on(root, monkeypatch):
    with pytest.raises(ValueError, match=r"wnids\.txt: expected 200 classes, got 3"):
        both(root.parent)
    monkeypatch.setattr(tiny_imagenet, "CLASSES", 3)
    with pytest.raises(FileNotFoundError, match=r"expected train/n01000001/images/n01000001_12\.JPEG"):
        load("Tiny-ImageNet", root.parent, True)
    with pytest.raises(ValueError, match=r"val_annotations\.txt: expected 10,000 images, got 9"):
        load("Tiny-ImageNet", root.parent, False)
    monkeypatch.setattr(tiny_imagenet, "EACH", 12)
    monkeypatch.setattr(tiny_imagenet, "VALIDATION", 9)
    assert [len(part) for part in both(root.parent)] == [36, 9]


def encoded(size, form="JPEG"):
    file = io.BytesIO()
    Image.new("RGB", size, (9, 99, 199)).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("name", ["train/n02000002/images/n02000002_4.JPEG", "val/images/val_3.JPEG"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded((64, 64))[:300], "got .*is the file damaged"),
        (b"", "got UnidentifiedImageError"),
        (b"<html>not found</html>", "got UnidentifiedImageError"),
        (encoded((64, 32)), "got 64x32$"),
    ],
)
def test_images_that_are_none_are_named(root, name, content, message):
    (root / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}: expected an image of 64x64 pixels, {message}"):
        both(root.parent, made=True)


@pytest.mark.parametrize(
    "line", ["val_9.JPEG\tn09\t0\t0\t1\t1", "val_9.JPEG n01000001 0 0 1 1", "val_9.JPEG", ""]
)
def test_annotations_that_are_none(root, line):
    with (root / "val/val_annotations.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt, line 10: expected a file, a class of wnids"):
        both(root.parent, made=True)


def test_without_data_the_message_says_what_to_get(tmp_path):
    expected = rf"expected tiny-imagenet-200\.zip \(md5 {tiny_imagenet.MD5}\) or its folder tiny-imagenet-200"
    with pytest.raises(FileNotFoundError, match=expected):
        both(tmp_path)
