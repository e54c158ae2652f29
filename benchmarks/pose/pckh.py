"""PCKh@0.5: the share of joints that are found within half the size of the head.

Joints are numbered as in MPII: 0 to 5 right ankle, knee, hip, left hip, knee, ankle; 6 pelvis, 7 thorax, 8
neck, 9 head; 10 to 15 right wrist, elbow, shoulder, left shoulder, elbow, wrist.
"""

from torch import Tensor

JOINTS = 16
PARTS = {
    "head": (9,),
    "shoulder": (12, 13),
    "elbow": (11, 14),
    "wrist": (10, 15),
    "hip": (2, 3),
    "knee": (1, 4),
    "ankle": (0, 5),
}
PAIRS = [joints for joints in PARTS.values() if len(joints) == 2]  # which change places in a mirror
LEFT_OUT = (6, 7)  # of the mean


def pckh(found: Tensor, places: Tensor, visible: Tensor, heads: Tensor) -> dict[str, float]:
    """Per cent of each part of the body (mean of right and left), and of all joints but pelvis and thorax.

    A joint is found if it is not further from its place than half the size of the head. Joints that are not
    visible do not count; a part of which one was never visible is NaN.

    Args:
        found, places: ``[people, 16, 2]``, in pixels of the original image.
        visible: ``[people, 16]``, 0 or 1.
        heads: their sizes, ``[people]``: 0.6 times the diagonal of the box around a head.
    """
    errors = (found.double() - places.double()).norm(dim=-1)
    seen = visible.double()
    hits = (errors <= 0.5 * heads.double().unsqueeze(-1)) * seen
    of_joint = 100 * hits.sum(0) / seen.sum(0)
    shares = {part: of_joint[list(joints)].mean().item() for part, joints in PARTS.items()}
    counted = [joint for joint in range(JOINTS) if joint not in LEFT_OUT]
    return shares | {"mean": (100 * hits[:, counted].sum() / seen[:, counted].sum()).item()}
