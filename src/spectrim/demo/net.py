"""The network of the demo: a small residual CNN for 28 x 28 grey images (Fashion-MNIST)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Basic residual block (He et al. 2015, section 3.3): two 3 x 3 convolutions and a projected or identity shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the block: ``inputs`` and ``outputs`` are channel counts."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class FashionNet(nn.Module):
    """Three residual blocks of 32, 64 and 128 channels; 10 classes; about 310,000 parameters."""

    def __init__(self) -> None:
        """Build the network with random weights."""
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2))
        self.layer1 = Block(32, 32, 1)
        self.layer2 = Block(32, 64, 2)
        self.layer3 = Block(64, 128, 2)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 1, 28, 28) to logits (N, 10)."""
        y: Tensor = self.layer3(self.layer2(self.layer1(self.stem(x))))
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits
