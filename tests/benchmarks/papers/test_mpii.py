"""MPII: HRNet's conventions for centre, box and numbering; crops whose joints lie where they are drawn."""

import json
import math
import re
import shutil

import pytest
import torch

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")
scipy_io = pytest.importorskip("scipy.io")

from benchmarks.data import mpii, write  # noqa: E402
from benchmarks.data.made_files import COLORS  # noqa: E402

VIEWS = [{}, {"degrees": 30.0}, {"degrees": -90.0}, {"zoom": 1.3}, {"flip": True}]
VIEWS += [{"degrees": 25.0, "zoom": 0.9, "flip": True}]


@pytest.fixture
def folder(tmp_path):
    write("MPII", tmp_path)
    return tmp_path


def entry(**changed):
    person = {
        "image": "a.png",
        "center": [101.0, 91.0],
        "scale": 0.5,
        "joints": [[j + 1.0, 2 * j + 1.0] for j in range(16)],
        "joints_vis": [1] * 15 + [0],
    }
    return {**person, **changed}


def annotated(folder, entries, pixels=None):
    """A folder with these entries and one image."""
    for name in ("annot", "images"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "annot/train.json").write_text(json.dumps(entries))
    pixels = np.zeros((180, 200, 3), np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(folder / "images/a.png")
    return folder


def test_centre_box_and_joints_as_hrnets_code_reads_them(tmp_path):
    """(101, 91 + 15 * 0.5) from 1 on is (100, 97.5) from 0 on; 200 * 0.5 pixels and a quarter are 125."""
    persons = mpii.load(annotated(tmp_path, [entry()]), "train", made=True)
    assert len(persons) == 1 and persons.files == [tmp_path / "images/a.png"]
    assert persons.center.tolist() == [[100, 97.5]] and persons.side.tolist() == [125]
    assert persons.joints[0].tolist() == [[j, 2 * j] for j in range(16)]
    assert persons.visible[0].tolist() == [1] * 15 + [0]


@pytest.mark.parametrize("view", VIEWS)
def test_joints_lie_where_they_are_drawn(folder, view):
    """Of a mirrored person the right ankle is where the left one was drawn."""
    persons = mpii.load(folder, "train", made=True)
    for i in range(len(persons)):
        crop = persons.crop(i, 128, **view)
        assert crop.image.shape == (3, 128, 128) and crop.image.dtype == torch.uint8
        assert crop.visible.sum() == 15
        for j, (x, y) in enumerate(crop.joints.round().int().tolist()):
            drawn = mpii.FLIPPED[j] if view.get("flip") else j
            # The neck's dot hides most of the thorax, and a dot near a black corner may be cut off.
            if crop.visible[j] and drawn not in (7, 8) and 2 <= x < 126 and 2 <= y < 126:
                color = crop.image[:, y, x].int()
                off = [(color - torch.tensor(c)).abs().sum().item() for c in COLORS]
                assert off[drawn] == min(off) and off[drawn] < 60
        seen = crop.joints[crop.visible == 1]
        assert seen.min() > -10 and seen.max() < 138


def test_a_flip_changes_right_and_left():
    for j, name in enumerate(mpii.JOINTS):
        other = {"right": "left", "left": "right"}.get(name.split()[0])
        expected = name if other is None else " ".join([other, *name.split()[1:]])
        assert mpii.JOINTS[mpii.FLIPPED[j]] == expected
    assert len(mpii.JOINTS) == 16


@pytest.mark.parametrize("view", VIEWS)
def test_the_matrix_is_of_three_points(tmp_path, view):
    """The box's centre, the middle of its upper side, and a third one at a right angle: HRNet's way."""
    persons = mpii.load(annotated(tmp_path, [entry(center=[71.0, 80.0], scale=0.4)]), "train", made=True)
    size, zoom = 64, view.get("zoom", 1)
    angle, sign = math.radians(view.get("degrees", 0)), -1 if view.get("flip") else 1
    center, half = np.array([70.0, 79 + 15 * 0.4]), 0.4 * 200 * 1.25 * zoom / 2
    up = np.array([sign * half * math.sin(angle), -half * math.cos(angle)])  # seen in a mirror if flipped
    right = np.array([sign * half * math.cos(angle), half * math.sin(angle)])
    source = np.stack([center, center + up, center + right])
    target = np.array([[size / 2, size / 2], [size / 2, 0], [size, size / 2]])
    expected = np.linalg.solve(np.c_[source, np.ones(3)], target).T
    crop = persons.crop(0, size, **view)
    np.testing.assert_allclose(crop.matrix.numpy(), expected, atol=1e-5)
    # And back: joints of the file, in the crop and in the file again.
    order = mpii.FLIPPED if view.get("flip") else list(range(16))
    np.testing.assert_allclose(crop.to_file(crop.joints).numpy(), persons.joints[0][order].numpy(), atol=1e-3)


def test_pixels_between_are_interpolated_by_their_middles(tmp_path):
    """A linear ramp stays one: pixel (u, v) has the value at its place in the file. Outside it is black."""
    x, y = np.meshgrid(np.arange(200), np.arange(180))
    ramp = np.stack([x, y, 100 + 0 * x], axis=-1).astype(np.uint8)
    persons = mpii.load(annotated(tmp_path, [entry(center=[31.0, 91.0])], ramp), "train", made=True)
    for view in VIEWS:
        crop = persons.crop(0, 96, **view)
        u, v = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="xy")
        place = crop.to_file(torch.stack([u, v], -1))
        well_inside = ((place > 1) & (place < torch.tensor([198, 178]))).all(-1)
        outside = ((place < -1) | (place > torch.tensor([200, 180]))).any(-1)
        assert well_inside.any() and outside.any()
        # Pillow rounds down: from 0 to 1 is missing, and about a half on average.
        lost = (place - crop.image[:2].permute(1, 2, 0))[well_inside]
        assert lost.min() > -1e-3 and lost.max() < 1.001 and 0.4 < lost.mean() < 0.6
        assert (crop.image[2][well_inside] == 100).all() and (crop.image[:, outside] == 0).all()


def test_a_mirrored_crop_is_the_crop_of_the_mirrored_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (180, 200, 3)).astype(np.uint8)
    (tmp_path / "b").mkdir()
    joints = entry()["joints"]
    mirrored = entry(center=[201 - 101.0, 91.0], joints=[[201 - x, y] for x, y in joints])
    a = mpii.load(annotated(tmp_path, [entry()], pixels), "train", made=True)
    b = mpii.load(annotated(tmp_path / "b", [mirrored], pixels[:, ::-1].copy()), "train", made=True)
    ours, theirs = a.crop(0, 96, degrees=20, flip=True), b.crop(0, 96, degrees=20)
    assert (ours.image.int() - theirs.image.int()).abs().max() <= 1
    torch.testing.assert_close(ours.joints, theirs.joints[mpii.FLIPPED])
    assert torch.equal(ours.visible, theirs.visible[mpii.FLIPPED])


def test_random_views_are_hrnets():
    """Normal numbers, cut off at one (box) and two (angle) standard deviations; 6 of 10 are turned."""
    generator = torch.Generator().manual_seed(0)
    views = [mpii.random_view(generator) for _ in range(4000)]
    degrees, zoom, flip = (torch.tensor(v, dtype=torch.float64) for v in zip(*views, strict=True))
    assert (degrees != 0).double().mean() == pytest.approx(0.6, abs=0.03)
    assert flip.mean() == pytest.approx(0.5, abs=0.03)
    turned = degrees[degrees != 0]
    assert turned.abs().max() == 60 and turned.mean().abs() < 2
    assert (turned.abs() < 30).double().mean() == pytest.approx(0.683, abs=0.03)
    assert zoom.min() == 0.75 and zoom.max() == 1.25
    assert ((zoom > 0.75) & (zoom < 1.25)).double().mean() == pytest.approx(0.683, abs=0.03)
    again = torch.Generator().manual_seed(0)
    assert [mpii.random_view(again) for _ in range(10)] == views[:10]


def test_truth_is_the_mat_file_from_0_on(folder):
    """A head's box of 30 by 40 pixels has a diagonal of 50; 0.6 of it are 30."""
    persons, truth = mpii.load(folder, "valid", made=True), mpii.load_truth(folder, made=True)
    assert truth.head.tolist() == [30] * 8
    torch.testing.assert_close(truth.joints, persons.joints)
    assert truth.joints.dtype == torch.float32 and truth.labelled.dtype == torch.bool
    assert torch.equal(truth.labelled, persons.visible == 1) and not truth.labelled.all()


def test_mmposes_names_will_do(folder):
    before = mpii.load(folder, "valid", made=True), mpii.load_truth(folder, made=True)
    (folder / "annot").rename(folder / "annotations")
    (folder / "annotations/valid.json").rename(folder / "annotations/mpii_val.json")
    (folder / "annotations/gt_valid.mat").rename(folder / "annotations/mpii_gt_val.mat")
    after = mpii.load(folder, "valid", made=True), mpii.load_truth(folder, made=True)
    assert torch.equal(before[0].joints, after[0].joints) and torch.equal(before[1].head, after[1].head)


@pytest.mark.parametrize(("part", "count"), [("train", "22,246"), ("valid", "2,958"), ("trainval", "29,116")])
def test_the_real_ones_have_so_many_persons(folder, part, count):
    if part == "trainval":
        shutil.copy(folder / "annot/train.json", folder / "annot/trainval.json")
    with pytest.raises(ValueError, match=rf"{part}\.json: expected {count} persons, got 8"):
        mpii.load(folder, part)


def test_the_real_truth_has_as_many_as_valid(folder):
    with pytest.raises(ValueError, match=r"gt_valid\.mat: expected 2,958 persons, got 8"):
        mpii.load_truth(folder)


def test_missing_files_are_named(folder):
    (folder / "images/train_3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected images/train_3\.jpg, which train\.json names"):
        mpii.load(folder, "train", made=True)
    with pytest.raises(
        FileNotFoundError, match=r"annot/trainval\.json or annotations/mpii_trainval\.json, got"
    ):
        mpii.load(folder, "trainval", made=True)
    (folder / "annot/gt_valid.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"annot/gt_valid\.mat or annotations/mpii_gt_val\.mat, got"):
        mpii.load_truth(folder, made=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image": "a.pn', "JSONDecodeError.*Get it once more"),
        ('{"image": "a.png"}', "TypeError"),
        (json.dumps([{"image": "a.png"}]), "KeyError: 'center'"),
        (json.dumps([entry(), entry(joints=[[1, 2]] * 15)]), "ValueError"),
        (json.dumps([entry(joints=[[1, 2]] * 15)]), r"got \[\[2\], \[\], \[15, 2\], \[16\]\]"),
        (json.dumps([entry(scale=[0.5])]), r"got \[\[2\], \[1\], \[16, 2\], \[16\]\]"),
        ("[]", "at least 1 persons, got 0"),
    ],
)
def test_annotations_that_are_none_are_named(tmp_path, content, message):
    (annotated(tmp_path, []) / "annot/train.json").write_text(content)
    with pytest.raises(ValueError, match=rf"train\.json: expected .*{message}"):
        mpii.load(tmp_path, "train", made=True)


def test_damaged_images_are_named(folder):
    path = folder / "images/train_2.jpg"
    persons = mpii.load(folder, "train", made=True)
    for content in (path.read_bytes()[:900], b"<html>"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"{re.escape(str(path))}: expected an image, got .*Get it once"
        ):
            persons.crop(2, 64)


def test_truth_of_another_form_is_named(folder):
    path = folder / "annot/gt_valid.mat"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"MATLAB 5.0 MAT-file".ljust(200)):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"gt_valid\.mat: expected MATLAB's arrays jnt_missing, pos_gt_src"
        ):
            mpii.load_truth(folder, made=True)
    good = {
        "jnt_missing": np.zeros((16, 3)),
        "pos_gt_src": np.ones((16, 2, 3)),
        "headboxes_src": np.ones((2, 2, 3)),
    }
    for wrong in ("jnt_missing", "pos_gt_src", "headboxes_src"):
        scipy_io.savemat(path, {**good, wrong: good[wrong][1:]})
        with pytest.raises(ValueError, match=r"gt_valid\.mat: expected shapes \[16, N\], \[16, 2, N\]"):
            mpii.load_truth(folder, made=True)
        scipy_io.savemat(path, {k: v for k, v in good.items() if k != wrong})
        with pytest.raises(ValueError, match=rf"gt_valid\.mat: .*got KeyError: '{wrong}'"):
            mpii.load_truth(folder, made=True)
