"""SimCC: targets, the loss of each image, decoding, the flip test, and that it learns."""

import math

import pytest
import torch
from torch import nn

from ausam_ext import ADLP, SAM
from benchmarks.pose import simcc
from benchmarks.pose.backbones import small_backbone
from benchmarks.pose.pckh import PAIRS, pckh

SIZE = (24, 32)  # width, height


def places(n, seed=0):
    """Of all joints, inside the image."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 16, 2, generator=g) * (torch.tensor(SIZE) - 1)


def network(channels=8):
    return simcc.SimCC(small_backbone(channels), channels, SIZE)


def slow_loss(logits, target):
    """Joint by joint, bin by bin; the mean over the batch before that over joints, as in published code."""
    *targets, weight = target
    total = 0.0
    for z, t in zip(logits, targets, strict=True):
        n, joints, bins = z.shape
        for j in range(joints):
            for i in range(n):
                largest = max(z[i, j].tolist())
                norm = largest + math.log(sum(math.exp(v - largest) for v in z[i, j].tolist()))
                terms = zip(z[i, j].tolist(), t[i, j].tolist(), strict=True)
                kl = sum(p * (math.log(p) - (v - norm)) for v, p in terms if p > 0)
                total += weight[i, j].item() * kl / bins / n / joints
    return total


def test_a_loss_by_hand():
    """One joint, 4 bins, uniform output, t = (.5, .5, 0, 0): ln(.5 / .25) / 4 = ln 2 / 4 for x, 0 for y."""
    logits = torch.full((1, 1, 4), 3.0)
    half, uniform = torch.tensor([[[0.5, 0.5, 0, 0]]]), torch.full((1, 1, 4), 0.25)
    for weight in (1.0, 0.0):
        target = (half, uniform, torch.tensor([[weight]]))
        losses = simcc.losses((logits, logits), target)
        assert losses.tolist() == pytest.approx([weight * 0.1732868], rel=1e-6)
    both = simcc.losses((logits, logits), (half, half, torch.ones(1, 1)))
    assert both.item() == pytest.approx(2 * math.log(2) / 4)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("targets", [simcc.one_hot, simcc.gaussian])
def test_the_mean_of_losses_equals_the_published_order(targets, batch):
    visible = torch.ones(batch, 16)
    visible[0, 3:9] = 0
    target = targets(places(batch), visible, SIZE)
    logits = (torch.randn(batch, 16, 48), torch.randn(batch, 16, 64))
    losses = simcc.losses(logits, target)
    assert losses.shape == (batch,)
    assert losses.mean().item() == pytest.approx(slow_loss(logits, target), rel=1e-5)
    alone = [
        simcc.losses([z[i : i + 1] for z in logits], [t[i : i + 1] for t in target]) for i in range(batch)
    ]
    torch.testing.assert_close(losses, torch.cat(alone))


def test_one_hot_targets():
    """Two bins a pixel: 3.3 is nearest to bin 7, 31.6 to bin 63; .2 / 47 and .2 / 63 elsewhere."""
    joint = torch.tensor([[[3.3, 31.6]]])
    x, y, weight = simcc.one_hot(joint, torch.ones(1, 1), SIZE)
    for t, place, bins in ((x, 7, 48), (y, 63, 64)):
        expected = [0.2 / (bins - 1)] * bins
        expected[place] = 0.8
        assert t.flatten().tolist() == pytest.approx(expected)
    assert weight.tolist() == [[1]]
    sharp, _, _ = simcc.one_hot(joint, torch.ones(1, 1), SIZE, smoothing=0)
    assert sharp.flatten().tolist() == [float(b == 7) for b in range(48)]


def test_gaussian_targets():
    """A density: it adds up to 1 in the middle, and to half at the border, where the rest is cut off."""
    joints = torch.tensor([[[12.25, 16.0], [0.0, 31.5]]])
    x, y, weight = simcc.gaussian(joints, torch.ones(1, 2), SIZE, sigma=2.0)
    for t, bins, axis in ((x, 48, 0), (y, 64, 1)):
        for j in range(2):
            mean = 2 * joints[0, j, axis].item()
            density = [math.exp(-((b - mean) ** 2) / 8) / (2 * math.sqrt(2 * math.pi)) for b in range(bins)]
            assert t[0, j].tolist() == pytest.approx(density, abs=1e-7)
    assert x[0, 0].sum().item() == pytest.approx(1, abs=1e-4) and x[0, 1].sum() < 0.61
    assert weight.tolist() == [[1, 1]] and simcc.SIGMA == 6


@pytest.mark.parametrize(
    ("targets", "inside", "outside"),
    [
        # Bins 0 to 47 and 0 to 63.
        (simcc.one_hot, [(0, 0), (-0.2, -0.2), (23.6, 31.6)], [(-0.3, 5), (5, -0.3), (23.8, 5), (5, 31.8)]),
        # 18 pixels from the image.
        (simcc.gaussian, [(-17, -17), (41, 49)], [(-19, 5), (5, -19), (43, 5), (5, 51)]),
    ],
)
def test_joints_outside_do_not_count(targets, inside, outside):
    for joints, expected in ((inside, 1), (outside, 0)):
        joints = torch.tensor([joints], dtype=torch.float32)
        x, y, weight = targets(joints, torch.ones(joints.shape[:2]), SIZE)
        assert (weight == expected).all() and x.isfinite().all() and y.isfinite().all()
        assert not targets(joints, torch.zeros(joints.shape[:2]), SIZE)[2].any()  # not labelled


@pytest.mark.parametrize("targets", [simcc.one_hot, simcc.gaussian])
def test_decoding_finds_the_joint_again(targets):
    joints = places(5)
    x, y, _ = targets(joints, torch.ones(5, 16), SIZE)
    assert (simcc.decode(x, y) - joints).abs().max() <= 0.25  # half a bin
    assert simcc.decode(torch.eye(48)[[9]], torch.eye(64)[[8]]).tolist() == [[4.5, 4]]


class Seer(nn.Module):
    """Sees joint j in the pixel of value j + 1; in a mirror image right is left."""

    def forward(self, images):
        mirrored = images[0, 0, 0, -1] == 99
        x, y = torch.full((1, 16, 48), -50.0), torch.full((1, 16, 64), -50.0)
        for j in range(16):
            partner = dict([*PAIRS, *(pair[::-1] for pair in PAIRS)]).get(j, j)
            row, column = (images[0, 0] == (partner if mirrored else j) + 1).nonzero()[0].tolist()
            x[0, j, 2 * column], y[0, j, 2 * row] = 50, 50
        return x, y


def test_the_flip_test_agrees_with_itself():
    """Of a network that is right about both images the mean is as sure as each."""
    image = torch.zeros(1, 1, *SIZE[::-1])
    image[..., 0, 0] = 99
    pixels = torch.randperm(23 * 31, generator=torch.Generator().manual_seed(0))[:16]
    joints = torch.stack([1 + pixels % 23, 1 + pixels // 23], -1)
    for j, (column, row) in enumerate(joints.tolist()):
        image[0, 0, row, column] = j + 1
    x, y = simcc.probabilities(Seer(), image)
    assert torch.equal(simcc.decode(x, y)[0], joints.float())
    assert x.amax(-1).min() > 0.999 and y.amax(-1).min() > 0.999


def test_the_flip_test_is_a_mean_of_probabilities():
    model, images = network().eval(), torch.randn(2, 3, *SIZE[::-1])
    x, y = simcc.probabilities(model, images)
    for t in (x, y):
        torch.testing.assert_close(t[..., :-1].sum(-1), torch.ones(2, 16), rtol=0, atol=0.1)
    plain, mirrored = model(images)[1].softmax(-1), model(images.flip(-1))[1].softmax(-1)
    torch.testing.assert_close(y[:, 0], (plain[:, 0] + mirrored[:, 5]) / 2)  # ankles
    torch.testing.assert_close(y[:, 9], (plain[:, 9] + mirrored[:, 9]) / 2)  # head


@pytest.mark.parametrize("batch", [1, 2])
def test_shapes_of_the_head(batch):
    """A 1x1 convolution to 16 maps of a quarter, then 6 * 8 pixels to 48 and to 64 bins."""
    model = network()
    x, y = model(torch.randn(batch, 3, *SIZE[::-1]))
    assert x.shape == (batch, 16, 48) and y.shape == (batch, 16, 64)
    assert sum(p.numel() for p in model.maps.parameters()) == 16 * 8 + 16
    assert model.x.weight.shape == (48, 48) and model.y.weight.shape == (64, 48)


def drawn(n, seed=0):
    """People of one bright pixel each, on which all their joints lie."""
    joints = places(n, seed)[:, :1].round().expand(n, 16, 2)
    images = torch.zeros(n, 3, *SIZE[::-1])
    for image, (column, row) in zip(images, joints[:, 0].long().tolist(), strict=True):
        image[:, row, column] = 10
    return images, joints


@pytest.mark.parametrize("batch", [1, 16])
def test_learns_where_joints_are(batch):
    """With SAM and per-sample losses, as AUSAM needs them; also one image at a time."""
    images, joints = drawn(batch)
    target = simcc.one_hot(joints, torch.ones(batch, 16), SIZE)
    model, adlp = network(), ADLP(batch)
    sam, optimizer = SAM(model, 0.01), torch.optim.Adam(model.parameters(), 0.01)

    def closure():
        optimizer.zero_grad()
        losses = simcc.losses(model(images), target)
        losses.mean().backward()
        return losses

    heads = torch.full((batch,), 6.0)  # found within 3 pixels
    score = []
    for _ in range(40):
        score.append(pckh(simcc.decode(*model(images)), joints, torch.ones(batch, 16), heads)["mean"])
        adlp.update(torch.arange(batch), *sam.backward(closure))
        optimizer.step()
    assert score[0] < 30 and score[-1] > 90, score
    assert (adlp.count == 40).all() and adlp.total.isfinite().all()


def test_losses_of_an_image_do_not_depend_on_the_others():
    images, joints = drawn(4)
    model = network().eval()
    target = simcc.one_hot(joints, torch.ones(4, 16), SIZE)
    together = simcc.losses(model(images), target)
    alone = [simcc.losses(model(images[i : i + 1]), [t[i : i + 1] for t in target]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))
