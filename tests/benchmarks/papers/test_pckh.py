"""PCKh@0.5: by hand, and against a slow oracle."""

import math

import pytest
import torch

from benchmarks.pose.pckh import PAIRS, pckh


def size_of(boxes):
    """As MPII has it."""
    return 0.6 * (boxes[:, 1] - boxes[:, 0]).norm(dim=-1)


def test_pckh_by_hand():
    """Box (0, 0) to (30, 40): diagonal 50, head 30, limit 15."""
    truth = torch.zeros(2, 16, 2)
    found = truth.clone()
    found[0, 9] = torch.tensor([9.0, 12.0])  # head at 15: found
    found[1, 9] = torch.tensor([9.0, 12.1])  # just not
    found[:, 12] = 99  # right shoulder: neither
    found[:, 0] = 99  # right ankle, of which one is not visible
    found[:, 6:8] = 99  # pelvis and thorax: left out
    visible = torch.ones(2, 16)
    visible[0, 0] = 0
    box = torch.tensor([[[0.0, 0.0], [30.0, 40.0]]]).repeat(2, 1, 1)
    result = pckh(found, truth, visible, size_of(box))
    assert result == pytest.approx(
        {
            "head": 50, "shoulder": 50, "elbow": 100, "wrist": 100, "hip": 100, "knee": 100, "ankle": 50,
            "mean": 100 * 23 / 27,  # of 27 visible one head, two shoulders and one ankle are not found
        }
    )  # fmt: skip


def test_pckh_equals_a_slow_oracle():
    g = torch.Generator().manual_seed(0)
    truth = 200 * torch.rand(9, 16, 2, generator=g)
    found = truth + 12 * torch.randn(9, 16, 2, generator=g)
    visible = (torch.rand(9, 16, generator=g) < 0.7).long()
    boxes = torch.stack([truth[:, 9] - 15, truth[:, 9] + 20 + 9 * torch.rand(9, 2, generator=g)], 1)
    hits, counts = [0] * 16, [0] * 16
    for person in range(9):
        limit = 0.5 * 0.6 * math.dist(*boxes[person].tolist())
        for j in range(16):
            if visible[person, j]:
                counts[j] += 1
                hits[j] += math.dist(found[person, j].tolist(), truth[person, j].tolist()) <= limit
    share = [100 * h / c for h, c in zip(hits, counts, strict=True)]
    result = pckh(found, truth, visible, size_of(boxes))
    sides = {"shoulder": (12, 13), "elbow": (11, 14), "wrist": (10, 15)}
    sides |= {"hip": (2, 3), "knee": (1, 4), "ankle": (0, 5)}
    expected = {part: (share[a] + share[b]) / 2 for part, (a, b) in sides.items()}
    counted = [*range(6), *range(8, 16)]
    expected["head"] = share[9]
    expected["mean"] = sum(share[j] * counts[j] for j in counted) / sum(counts[j] for j in counted)
    assert result == pytest.approx(expected) and 20 < result["mean"] < 90


def test_a_part_that_nobody_shows_is_nan():
    visible = torch.ones(1, 16)
    visible[0, 2] = 0
    result = pckh(torch.zeros(1, 16, 2), torch.zeros(1, 16, 2), visible, torch.ones(1))
    assert math.isnan(result["hip"]) and result["mean"] == 100


def test_pairs_are_those_of_mpii():
    assert sorted(map(sorted, PAIRS)) == [[0, 5], [1, 4], [2, 3], [10, 15], [11, 14], [12, 13]]
