"""The networks: trained checkpoints, and the definitions of the thirteen, torchvision's with the customary small-image stem.

A stem made for 224 pixels would leave 1 x 1 features of a 32-pixel image: strides and pooling of the first layers are taken
out, as is usual on CIFAR. Everything else is the library's. LeNet-5 and ResNet-20, which torchvision lacks, are their papers'.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.cli.models import import_callable, load_weights, make_model

EXAMPLES = Path(__file__).parents[2] / "examples"
CLASSES = 10


def checkpoint(models: Path, name: str) -> nn.Module:
    """Return a network of examples/cifar_resnet.py with weights of `../shared/models`, such as `resnet20-cifar10jpeg`."""
    model = make_model(f"{EXAMPLES / 'cifar_resnet.py'}:{name.partition('-')[0]}")
    load_weights(model, str(models / f"{name}.safetensors"))
    return model


def vgg16(weights: Path | None = None) -> nn.Module:
    """Return the VGG-16-BN of examples/cifar_vgg.py, with weights from a file where one is given."""
    model = make_model(f"{EXAMPLES / 'cifar_vgg.py'}:vgg16")
    if weights is not None:
        load_weights(model, str(weights))
    return model


@dataclass(frozen=True)
class Network:
    """How a network is built and trained.

    Attributes:
        build: From input channels to the network with fresh weights.
        rate: Largest learning rate; the ordinary one, less without BatchNorm.
        grows: Whether it takes smaller images too.
    """

    build: Callable[[int], nn.Module]
    rate: float = 0.1
    grows: bool = True


def torchvision_models() -> ModuleType:
    """Import torchvision's networks, also where its compiled operators do not fit torch: no network here needs one."""
    try:
        from torchvision import models
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision import models
    return models  # type: ignore[no-any-return]


class Unet(nn.Module):
    """Three scales down and up again, with what each scale had put beside what comes up (Ronneberger et al. 2015)."""

    def __init__(self, width: int = 32, classes: int = 4) -> None:
        """Make the layers: `width` channels at full size, twice as many at each scale below."""
        super().__init__()
        widths = [width << scale for scale in range(4)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(widths))
        self.merge = nn.ModuleList(_twice(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes, H, W); height and width are multiples of 8."""
        scales = []
        for number, stage in enumerate(self.down):
            x = stage(x if number == 0 else functional.max_pool2d(x, 2))
            scales.append(x)
        for before, up, merge in reversed(list(zip(scales[:-1], self.up, self.merge, strict=True))):
            x = merge(torch.cat([before, up(x)], 1))
        found: Tensor = self.head(x)
        return found


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    pairs = ((inputs, outputs), (outputs, outputs))
    layers = [(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairs]
    return nn.Sequential(*itertools.chain(*layers))


def audio(width: int = 128, classes: int = 35) -> nn.Module:
    """M5 of Dai et al. 2017: four 1-D convolutions on a second of sound at 8 kHz, (N, 1, 8000)."""
    sizes = ((1, width, 80, 4), (width, width, 3, 1), (width, 2 * width, 3, 1), (2 * width, 4 * width, 3, 1))
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in sizes:
        layers += [nn.Conv1d(inputs, outputs, kernel, stride), nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(4)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4 * width, classes))


def pyramid() -> nn.Module:
    """Return the backbone of a torchvision detector, ResNet-18 with a feature pyramid: a dict of five maps comes out."""
    return torchvision_models().detection.backbone_utils.resnet_fpn_backbone(  # type: ignore[no-any-return]
        backbone_name="resnet18", weights=None, trainable_layers=5
    )


def adapted(name: str, change: Callable[[Any, int], None], **options: Any) -> Callable[[int], nn.Module]:
    """Return from input channels to a network of torchvision with what a small image needs."""

    def build(channels: int) -> nn.Module:
        model: nn.Module = torchvision_models().get_model(name, weights=None, num_classes=CLASSES, **options)
        change(model, channels)
        return model

    return build


def _stem(channels: int, like: nn.Conv2d, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, like.out_channels, kernel, stride, kernel // 2, bias=like.bias is not None)


def lenet(channels: int) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU and maxima, 32 pixels."""
    features = nn.Sequential(
        nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    )
    head = nn.Sequential(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES))
    return nn.Sequential(features, head)


def resnet20(channels: int) -> nn.Module:
    """ResNet-20 of He et al. 2016, section 4.2."""
    model: Any = import_callable(f"{EXAMPLES / 'cifar_resnet.py'}:resnet20")()
    if channels != 3:
        model.conv1 = _stem(channels, model.conv1)
    return model  # type: ignore[no-any-return]


def alexnet(model: Any, channels: int) -> None:
    """Give it a 3 x 3 stem of stride 2, pooling over 2 x 2, and 2 x 2 features into the first linear layer."""
    model.features[0] = _stem(channels, model.features[0], stride=2)
    for index in (2, 5, 12):
        model.features[index] = nn.MaxPool2d(2)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier[1] = nn.Linear(256 * 4, 4096)


def vgg(model: Any, channels: int) -> None:
    """Give it one linear layer behind 512 features, and no bias before BatchNorm."""
    model.features[0] = _stem(channels, model.features[0])
    for module in model.features:
        if isinstance(module, nn.Conv2d):
            module.bias = None
    model.features[-1] = nn.AdaptiveMaxPool2d(1)
    model.avgpool, model.classifier = nn.Identity(), nn.Linear(512, CLASSES)


def resnet(model: Any, channels: int) -> None:
    """Give it a 3 x 3 stem without stride or pooling."""
    model.conv1, model.maxpool = _stem(channels, model.conv1), nn.Identity()


def densenet(model: Any, channels: int) -> None:
    """Give it a 3 x 3 stem without stride or pooling."""
    model.features.conv0, model.features.pool0 = _stem(channels, model.features.conv0), nn.Identity()


def googlenet(model: Any, channels: int) -> None:
    """Give it a 3 x 3 stem without stride, and no pooling before the first inception."""
    model.conv1.conv = _stem(channels, model.conv1.conv)
    model.maxpool1, model.maxpool2 = nn.Identity(), nn.Identity()


def mobilenet(model: Any, channels: int) -> None:
    """Take the stride out of the stem and of the first stage that has one."""
    model.features[0][0] = _stem(channels, model.features[0][0])
    model.features[2].conv[1][0].stride = (1, 1)


def efficientnet(model: Any, channels: int) -> None:
    """Take the stride out of the stem and of the first stage that has one."""
    model.features[0][0] = _stem(channels, model.features[0][0])
    model.features[2][0].block[1][0].stride = (1, 1)


def squeezenet(model: Any, channels: int) -> None:
    """Take the stride out of the stem."""
    model.features[0] = _stem(channels, model.features[0])


NETWORKS = {
    "LeNet-5": Network(lenet, rate=0.05, grows=False),
    "AlexNet": Network(adapted("alexnet", alexnet), rate=0.02),
    "VGG-16-BN": Network(adapted("vgg16_bn", vgg), rate=0.05),
    "VGG-19-BN": Network(adapted("vgg19_bn", vgg), rate=0.05),
    "ResNet-20": Network(resnet20),
    "ResNet-18": Network(adapted("resnet18", resnet)),
    "ResNet-50": Network(adapted("resnet50", resnet)),
    "ResNet-101": Network(adapted("resnet101", resnet)),
    "DenseNet-121": Network(adapted("densenet121", densenet)),
    "GoogLeNet": Network(adapted("googlenet", googlenet, aux_logits=False, init_weights=True)),
    "MobileNetV2": Network(adapted("mobilenet_v2", mobilenet)),
    "EfficientNet-B0": Network(adapted("efficientnet_b0", efficientnet)),
    "SqueezeNet 1.1": Network(adapted("squeezenet1_1", squeezenet), rate=0.02),
}
