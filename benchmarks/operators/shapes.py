"""The parameters of networks as lists of shapes, in the order in which the networks hold them."""

from collections.abc import Iterator

Shape = tuple[int, ...]


def resnet18() -> Iterator[Shape]:
    """ImageNet's ResNet-18: 62 tensors, 11.7 million parameters."""
    yield from _convolution(3, 64, 7)
    channels = 64
    for filters in (64, 64, 128, 128, 256, 256, 512, 512):
        yield from _convolution(channels, filters, 3)
        yield from _convolution(filters, filters, 3)
        if channels != filters:
            yield from _convolution(channels, filters, 1)
        channels = filters
    yield from _linear(512, 1000)


def resnet50() -> Iterator[Shape]:
    """ImageNet's ResNet-50: 161 tensors, 25.6 million parameters."""
    yield from _convolution(3, 64, 7)
    channels = 64
    for filters, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from _convolution(channels, filters, 1)
            yield from _convolution(filters, filters, 3)
            yield from _convolution(filters, 4 * filters, 1)
            if block == 0:
                yield from _convolution(channels, 4 * filters, 1)
            channels = 4 * filters
    yield from _linear(2048, 1000)


def wide_resnet28_10() -> Iterator[Shape]:
    """CIFAR-10's WideResNet-28-10: 80 tensors, 36.5 million parameters."""
    yield 16, 3, 3, 3
    channels = 16
    for filters in (*[160] * 4, *[320] * 4, *[640] * 4):
        yield from [(channels,)] * 2
        yield filters, channels, 3, 3
        yield from [(filters,)] * 2
        yield filters, filters, 3, 3
        if channels != filters:
            yield filters, channels, 1, 1
        channels = filters
    yield from [(640,)] * 2
    yield from _linear(640, 10)


def vit_b() -> Iterator[Shape]:
    """ImageNet's ViT-B/16: 152 tensors, 86.6 million parameters."""
    yield from [(1, 1, 768), (768, 3, 16, 16), (768,), (1, 197, 768)]
    for _ in range(12):
        yield from [(768,)] * 2
        yield from _linear(768, 3 * 768)
        yield from _linear(768, 768)
        yield from [(768,)] * 2
        yield from _linear(768, 3072)
        yield from _linear(3072, 768)
    yield from [(768,)] * 2
    yield from _linear(768, 1000)


def _convolution(channels: int, filters: int, size: int) -> Iterator[Shape]:
    """With the BatchNorm that follows it."""
    yield filters, channels, size, size
    yield from [(filters,)] * 2


def _linear(inputs: int, outputs: int) -> Iterator[Shape]:
    yield outputs, inputs
    yield (outputs,)


LISTS = {
    "ResNet-18": list(resnet18()),
    "WideResNet-28-10": list(wide_resnet28_10()),
    "ResNet-50": list(resnet50()),
    "ViT-B": list(vit_b()),
}
