"""Crop, flip and Cutout of a batch, against one image at a time in numpy."""

import pytest
import torch

np = pytest.importorskip("numpy")
pytest.importorskip("PIL")

from benchmarks.data import augment, normalise  # noqa: E402

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def images(batch=64, channels=3, height=32, width=32, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (batch, channels, height, width), generator=generator).byte().to(device)


def seeded(device="cpu", seed=5):
    return torch.Generator(device).manual_seed(seed)


def one_by_one(x, mean, std, generator, pad, cutout):
    """The same random numbers, then each image by slices and loops, in float64."""
    batch, channels, height, width = x.shape
    numbers = [
        torch.randint(high, (batch, 1), generator=generator, device=x.device).flatten().tolist()
        for high in (2 * pad + 1, 2 * pad + 1, 2, 2, height, width)
    ]
    result = np.zeros(x.shape)
    for i, (top, left, flip, cut, row, column) in enumerate(zip(*numbers, strict=True)):
        image = np.pad(x[i].cpu().numpy(), ((0, 0), (pad, pad), (pad, pad)))
        image = image[:, top : top + height, left : left + width].astype(float)
        if flip:
            image = image[:, :, ::-1]
        for c in range(channels):
            result[i, c] = (image[c] / 255 - mean[c]) / std[c]
        for y in range(height):
            for z in range(width):
                low, high = -(cutout // 2), (cutout + 1) // 2
                if cut and low <= y - row < high and low <= z - column < high:
                    result[i, :, y, z] = 0
    return torch.from_numpy(result).float()


@pytest.mark.parametrize("pad", [0, 4])
@pytest.mark.parametrize("cutout", [0, 1, 7, 16])
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 28, 28), (3, 17, 24)])
def test_a_batch_is_its_images_one_by_one(device, pad, cutout, channels, height, width):
    x = images(32, channels, height, width, device)
    before = x.clone()
    arguments = MEAN[:channels], STD[:channels]
    got = augment(x, *arguments, seeded(device), pad=pad, cutout=cutout)
    expected = one_by_one(x, *arguments, seeded(device), pad, cutout)
    assert got.dtype == torch.float32 and got.device == x.device
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


def test_the_papers_settings_are_the_defaults(device):
    x = images(device=device)
    expected = one_by_one(x, MEAN, STD, seeded(device), 4, 16)
    torch.testing.assert_close(augment(x, MEAN, STD, seeded(device)).cpu(), expected, rtol=1e-5, atol=1e-5)


def test_the_same_state_gives_the_same_images_and_goes_on(device):
    x, generator = images(device=device), seeded(device)
    state = generator.get_state()
    first, second = augment(x, MEAN, STD, generator), augment(x, MEAN, STD, generator)
    assert not torch.equal(first, second)
    generator.set_state(state)
    assert torch.equal(first, augment(x, MEAN, STD, generator))
    assert torch.equal(second, augment(x, MEAN, STD, generator))


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    augment(images(), MEAN, STD, seeded())
    assert torch.equal(torch.get_rng_state(), before)


def places(batch=4000, **options):
    """Where the window lies, whether it is flipped, and where 0 was put, of images that say so."""
    y, z = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    x = torch.stack([y + 100, z + 100]).byte().expand(batch, -1, -1, -1)
    return augment(x, (0.0, 0.0), (1 / 255, 1 / 255), seeded(), **options).round().int()


def test_crops_and_flips_are_uniform():
    """An edge pixel says where the window lies: 9 places each way, each with 1 / 9; flips with 1 / 2."""
    x = places(cutout=0)
    middle = x[:, :, 16, 15:17] - 100  # inside of the image wherever the window lies
    flipped = middle[:, 1, 1] < middle[:, 1, 0]
    assert flipped.double().mean() == pytest.approx(0.5, abs=0.03)
    top = middle[:, 0, 0] - 16
    left = torch.where(flipped, middle[:, 1, 0] - 16, middle[:, 1, 0] - 15)
    for place in (top, left):
        assert place.unique().tolist() == list(range(-4, 5))
        assert (place + 4).bincount() / len(x) == pytest.approx([1 / 9] * 9, abs=0.015)
    assert (x == 0).any() and x[x > 0].min() == 100  # what comes from outside of the image is black


def test_cutout_covers_a_square_anywhere_in_half_of_the_images():
    """Its middle is uniform in the image: of a side's 32 places 15 leave less than the 16 pixels."""
    hole = (places(pad=0) == 0).all(1)  # [batch, 32, 32]
    size = hole.flatten(1).sum(1)
    assert (size > 0).double().mean() == pytest.approx(0.5, abs=0.03)
    cut = hole[size > 0]
    rows, columns = cut.any(2).sum(1), cut.any(1).sum(1)
    assert torch.equal(rows * columns, cut.flatten(1).sum(1))  # one rectangle
    assert rows.min() == 8 and rows.max() == 16 and columns.min() == 8 and columns.max() == 16
    assert (rows == 16).double().mean() == pytest.approx(17 / 32, abs=0.03)
    assert (columns == 16).double().mean() == pytest.approx(17 / 32, abs=0.03)
    assert cut[:, 0, 0].any() and cut[:, 31, 31].any()


def test_normalise_in_float64(device):
    x = images(device=device)
    got = normalise(x, MEAN, STD)
    assert got.dtype == torch.float32 and got.shape == x.shape
    for c in range(3):
        expected = ((x[:, c].double() / 255 - MEAN[c]) / STD[c]).float()
        torch.testing.assert_close(got[:, c], expected, rtol=1e-6, atol=1e-6)
    tensors = [torch.tensor(v, device=device) for v in (MEAN, STD)]
    assert torch.equal(got, normalise(x, *tensors))
    assert torch.equal(augment(x, MEAN, STD, seeded(device)), augment(x, *tensors, seeded(device)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images().float(), r"expected uint8 of shape \[B, 3, H, W\].*got torch\.float32"),
        (images()[0], r"got torch\.uint8 of shape \[3, 32, 32\]"),
        (images(channels=1), r"got torch\.uint8 of shape \[64, 1, 32, 32\], 3 means and 3 stds"),
    ],
)
@pytest.mark.parametrize("function", [normalise, lambda *arguments: augment(*arguments, seeded())])
def test_what_is_no_batch_of_images(function, x, message):
    with pytest.raises(ValueError, match=message):
        function(x, MEAN, STD)
