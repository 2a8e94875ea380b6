"""The thirteen networks of `thirteen.py`: definitions of torchvision where it has them, with the customary small-image stem.

A stem made for 224 pixels would leave 1 x 1 features of a 32-pixel image: strides and pooling of the first layers are taken
out, as is usual on CIFAR. Everything else is the library's. LeNet-5 and ResNet-20, which torchvision lacks, are their papers'.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from spectrim.zoo import import_callable

EXAMPLES = Path(__file__).parent.parent / "examples"
CLASSES = 10


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


def _library(name: str, **options: Any) -> nn.Module:
    return torchvision_models().get_model(name, weights=None, num_classes=CLASSES, **options)  # type: ignore[no-any-return]


def _stem(channels: int, like: nn.Conv2d, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, like.out_channels, kernel, stride, kernel // 2, bias=like.bias is not None)


def lenet(channels: int) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU and maxima, 32 pixels."""
    features = nn.Sequential(
        nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    )
    head = nn.Sequential(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES))
    return nn.Sequential(features, head)


def alexnet(channels: int) -> nn.Module:
    """AlexNet: a 3 x 3 stem of stride 2, pooling over 2 x 2, 2 x 2 features into the first linear layer."""
    model: Any = _library("alexnet")
    model.features[0] = _stem(channels, model.features[0], stride=2)
    for index in (2, 5, 12):
        model.features[index] = nn.MaxPool2d(2)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier[1] = nn.Linear(256 * 4, 4096)
    return model  # type: ignore[no-any-return]


def vgg(name: str) -> Callable[[int], nn.Module]:
    """VGG: one linear layer behind 512 features, and no bias before BatchNorm."""

    def build(channels: int) -> nn.Module:
        model: Any = _library(name)
        model.features[0] = _stem(channels, model.features[0])
        for module in model.features:
            if isinstance(module, nn.Conv2d):
                module.bias = None
        model.features[-1] = nn.AdaptiveMaxPool2d(1)
        model.avgpool, model.classifier = nn.Identity(), nn.Linear(512, CLASSES)
        return model  # type: ignore[no-any-return]

    return build


def resnet20(channels: int) -> nn.Module:
    """ResNet-20 of He et al. 2016, section 4.2."""
    model: Any = import_callable(f"{EXAMPLES / 'cifar_resnet.py'}:resnet20")()
    if channels != 3:
        model.conv1 = _stem(channels, model.conv1)
    return model  # type: ignore[no-any-return]


def resnet(name: str) -> Callable[[int], nn.Module]:
    """ResNet: a 3 x 3 stem without stride or pooling."""

    def build(channels: int) -> nn.Module:
        model: Any = _library(name)
        model.conv1, model.maxpool = _stem(channels, model.conv1), nn.Identity()
        return model  # type: ignore[no-any-return]

    return build


def densenet121(channels: int) -> nn.Module:
    """DenseNet-121: a 3 x 3 stem without stride or pooling."""
    model: Any = _library("densenet121")
    model.features.conv0, model.features.pool0 = _stem(channels, model.features.conv0), nn.Identity()
    return model  # type: ignore[no-any-return]


def googlenet(channels: int) -> nn.Module:
    """GoogLeNet without the auxiliary classifiers: a 3 x 3 stem without stride, no pooling before the first inception."""
    model: Any = _library("googlenet", aux_logits=False, init_weights=True)
    model.conv1.conv = _stem(channels, model.conv1.conv)
    model.maxpool1, model.maxpool2 = nn.Identity(), nn.Identity()
    return model  # type: ignore[no-any-return]


def mobilenet_v2(channels: int) -> nn.Module:
    """MobileNetV2: no stride in the stem and in the first stage that has one."""
    model: Any = _library("mobilenet_v2")
    model.features[0][0] = _stem(channels, model.features[0][0])
    model.features[2].conv[1][0].stride = (1, 1)
    return model  # type: ignore[no-any-return]


def efficientnet_b0(channels: int) -> nn.Module:
    """EfficientNet-B0: no stride in the stem and in the first stage that has one."""
    model: Any = _library("efficientnet_b0")
    model.features[0][0] = _stem(channels, model.features[0][0])
    model.features[2][0].block[1][0].stride = (1, 1)
    return model  # type: ignore[no-any-return]


def squeezenet(channels: int) -> nn.Module:
    """SqueezeNet 1.1: a stem without stride."""
    model: Any = _library("squeezenet1_1")
    model.features[0] = _stem(channels, model.features[0])
    return model  # type: ignore[no-any-return]


NETWORKS = {
    "LeNet-5": Network(lenet, rate=0.05, grows=False),
    "AlexNet": Network(alexnet, rate=0.02),
    "VGG-16-BN": Network(vgg("vgg16_bn"), rate=0.05),
    "VGG-19-BN": Network(vgg("vgg19_bn"), rate=0.05),
    "ResNet-20": Network(resnet20),
    "ResNet-18": Network(resnet("resnet18")),
    "ResNet-50": Network(resnet("resnet50")),
    "ResNet-101": Network(resnet("resnet101")),
    "DenseNet-121": Network(densenet121),
    "GoogLeNet": Network(googlenet),
    "MobileNetV2": Network(mobilenet_v2),
    "EfficientNet-B0": Network(efficientnet_b0),
    "SqueezeNet 1.1": Network(squeezenet, rate=0.02),
}
