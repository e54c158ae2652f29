"""SAM% as the papers measured it: SAM's time over a method's, in percent, on one RTX 3090.

Batches of 128, loading and augmentation included. Where a method has a figure for CIFAR-10 and one for
CIFAR-100, in this order.
"""

from collections.abc import Iterable

Figures = dict[str | float, tuple[int, ...]]

# AUSAM (arXiv 2406.08001), Table 2; 0.7: Table 1, which has CIFAR-100 alone.
AUSAM: dict[str, Figures] = {
    "ResNet-18": {"SGD": (170, 171), 0.4: (156, 155), 0.5: (132, 132), 0.6: (123, 119), 0.7: (114,)},
    "WideResNet-28-10": {"SGD": (195, 195), 0.4: (204, 202), 0.5: (179, 179), 0.6: (152, 152), 0.7: (134,)},
    "PyramidNet-110": {"SGD": (195, 196), 0.4: (203, 201), 0.5: (175, 176), 0.6: (151, 153)},
}
# AUSAM, Table 3: ResNet-18 with a 3x3 stem on Tiny-ImageNet's 64x64 images.
AUSAM_TINY_IMAGENET: dict[str | float, int] = {"SGD": 198, 0.5: 191, 0.6: 151}

# vSAM (arXiv 2403.08821), Table 3, and the steps with a second pass that led to it, of 78,200.
VSAM: dict[str, Figures] = {
    "ResNet-18": {"SGD": (178, 174), "vSAM": (140, 135), "samples": (23579, 27377)},
    "WideResNet-28-10": {"SGD": (197, 193), "vSAM": (139, 137), "samples": (33251, 29356)},
    "PyramidNet-110": {"SGD": (200, 201), "vSAM": (151, 146), "samples": (29104, 26972)},
}
VSAM_STEPS = 78200


def quote(network: str, method: str | float) -> str | None:
    """What the papers say of a method: ``"SGD"``, ``"vSAM"`` or an AUSAM's alpha.

    For a network that is not theirs, what they say of ResNet-18, their smallest.
    """
    name = network if network in AUSAM else "ResNet-18"
    parts = []
    if method in AUSAM[name]:
        parts.append(f"{_join(AUSAM[name][method])} (AUSAM Table {1 if method == 0.7 else 2})")
    if name == "ResNet-18" and method in AUSAM_TINY_IMAGENET:
        parts.append(f"{AUSAM_TINY_IMAGENET[method]} (AUSAM Table 3)")
    if method in VSAM[name]:
        rates = _join(f"{s / VSAM_STEPS:.2f}" for s in VSAM[name]["samples"])
        parts.append(
            _join(VSAM[name][method]) + (f" at rates {rates}" if method == "vSAM" else "") + " (vSAM Table 3)"
        )
    return f"{name}: " + ", ".join(parts) if parts else None


def _join(values: Iterable[object]) -> str:
    return " and ".join(map(str, values))
