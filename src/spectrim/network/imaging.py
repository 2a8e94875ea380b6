"""A network that takes images as decoders give them, or answers with probabilities; and images back from its inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectrim.core.export import Preprocess
from spectrim.network.calling import tensors_of

LEVELS = 255


class Imaging(nn.Module):
    """The network behind a normalisation: x = (image / 255 - mean) / std.

    Args:
        network: Takes (N, C, H, W).
        preprocess: Mean and standard deviation.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        """Put both numbers into one product and one sum."""
        super().__init__()
        mean, std = numbers(preprocess)
        self.network = network
        self.register_buffer("scale", (1 / (LEVELS * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, image: Tensor) -> Any:
        """Take images (N, H, W, C) of uint8."""
        return self.network(image.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift)


class Probabilities(nn.Module):
    """The network with softmax behind it.

    Args:
        network: From one tensor to logits (N, K).
    """

    def __init__(self, network: nn.Module) -> None:
        """Store the network."""
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities (N, K)."""
        return tensors_of(self.network(x))[0].softmax(1)


def numbers(preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, (C or 1, 1, 1) of doubles."""
    mean, std = (torch.tensor(x, dtype=torch.float64).view(-1, 1, 1) for x in (preprocess.mean, preprocess.std))
    return mean, std


def images_of(inputs: Tensor, preprocess: Preprocess) -> tuple[Tensor, float]:
    """Return the images that inputs were made of, and how far from these the inputs are.

    Args:
        inputs: (N, C, H, W), normalised.
        preprocess: How.

    Returns:
        Images (N, H, W, C) of uint8, and the largest difference in levels of 1/255; 0.5 at most where inputs are images.
    """
    mean, std = numbers(preprocess)
    exact = (inputs.double() * std + mean) * LEVELS
    whole = exact.round().clamp(0, LEVELS)
    images = whole.to(torch.uint8).permute(0, 2, 3, 1)
    return torch.empty(images.shape, dtype=images.dtype).copy_(images), float((exact - whole).abs().max())  # of usual strides
