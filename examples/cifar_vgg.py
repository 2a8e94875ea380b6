"""VGG-16 with BatchNorm for CIFAR images: the thirteen convolutions of Simonyan & Zisserman 2015 and one linear layer.

spectrim compress examples/cifar_vgg.py:vgg16 --weights vgg16.safetensors --data parquet:test.parquet ...
"""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class CifarVGG(nn.Module):
    """Five stages of 3 x 3 convolutions, each ended by a maximum; the last maximum is global, so images may be smaller."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        inputs = 3
        for stage, widths in enumerate(WIDTHS):
            for width in widths:
                modules += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            modules.append(nn.MaxPool2d(2) if stage < len(WIDTHS) - 1 else nn.AdaptiveMaxPool2d(1))
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def vgg16() -> CifarVGG:
    """Return a network of 14,719,818 convolution and linear parameters (BatchNorm not counted)."""
    return CifarVGG()
