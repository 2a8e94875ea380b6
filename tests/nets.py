"""Layers of every geometry and small networks of every shape of graph."""

import torch
from torch import nn
from torch.nn import functional

GEOMETRIES = {
    "plain": (lambda: nn.Conv2d(6, 8, 3, padding=1), (6, 9, 8)),
    "no bias": (lambda: nn.Conv2d(6, 8, 3, padding=1, bias=False), (6, 7, 7)),
    "stride": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), (6, 9, 8)),
    "uneven stride": (lambda: nn.Conv2d(6, 8, (3, 5), stride=(1, 2), padding=(0, 2)), (6, 9, 11)),
    "dilation": (lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=(2, 1)), (6, 11, 9)),
    "even kernel": (lambda: nn.Conv2d(6, 8, (2, 4), stride=(2, 1), padding=(1, 0)), (6, 8, 9)),
    "same": (lambda: nn.Conv2d(6, 8, 3, padding="same", dilation=2), (6, 9, 9)),
    "same, even kernel": (lambda: nn.Conv2d(6, 8, (4, 2), padding="same"), (6, 9, 9)),
    "valid": (lambda: nn.Conv2d(6, 8, 3, padding="valid"), (6, 9, 9)),
    "reflect": (lambda: nn.Conv2d(6, 8, 3, padding=(1, 2), padding_mode="reflect", dilation=(1, 2)), (6, 9, 9)),
    "replicate": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="replicate"), (6, 9, 9)),
    "circular": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1, padding_mode="circular"), (6, 8, 8)),
    "reflect same": (lambda: nn.Conv2d(6, 8, 3, padding="same", padding_mode="reflect"), (6, 8, 8)),
    "groups": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=2), (8, 9, 8)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 5, padding=2, groups=6), (6, 9, 9)),
    "depthwise multiplier": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 9, 9)),
    "1x1": (lambda: nn.Conv2d(8, 6, 1, stride=2), (8, 7, 7)),
    "1x3": (lambda: nn.Conv2d(6, 8, (1, 3), padding=(0, 1)), (6, 7, 7)),
    "one input": (lambda: nn.Conv2d(1, 8, 3, padding=1), (1, 9, 9)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 5, stride=2, padding=2), (6, 15)),
    "conv1d groups": (lambda: nn.Conv1d(6, 8, 3, padding=1, groups=2), (6, 11)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (3, 2, 3), stride=(1, 2, 1), padding=(1, 0, 1)), (4, 5, 6, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1), (6, 5, 6)),
    "transposed dilated": (lambda: nn.ConvTranspose2d(6, 8, (3, 2), dilation=2, stride=(1, 3), padding=(2, 0)), (6, 5, 6)),
    "transposed groups": (lambda: nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1, groups=2, bias=False), (6, 5, 5)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(6, 8, 4, stride=2, padding=1), (6, 9)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(4, 6, 2, stride=2), (4, 3, 3, 2)),
    "linear": (lambda: nn.Linear(12, 9), (12,)),
    "linear tokens": (lambda: nn.Linear(12, 9, bias=False), (5, 12)),
    "linear on a map": (lambda: nn.Linear(48, 12), (4, 3, 4)),  # of 4 channels, flattened
}


def layer_and_input(name, batch=6, dtype=torch.float64):
    make, shape = GEOMETRIES[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    x = x + 0.7 * x.mean(1, keepdim=True) + 0.3  # correlated channels that have a mean
    module = make().to(dtype)
    return module, x.to(dtype).flatten(1) if isinstance(module, nn.Linear) and len(shape) == 3 else x.to(dtype)


class Residual(nn.Module):
    """A stem, residual blocks with the shortcut computed before or after the branch, a head."""

    def __init__(self, width=8, inplace=True, projected=True):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.short = nn.Conv2d(width, 2 * width, 1, stride=2, bias=False)
        self.bns = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, 5)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x):
        x = self.relu(self.bn0(self.stem(x)))
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        x = self.relu(y)
        x = self.relu(self.bn3(self.conv3(x)) + self.bns(self.short(x)))
        return self.head(x.mean((2, 3)))


class InPlace(nn.Module):
    """Normalises what it is given, in place."""

    def __init__(self, network, inplace=True):
        super().__init__()
        self.network, self.inplace = network, inplace

    def forward(self, x):
        return self.network(x.sub_(0.5) if self.inplace else x - 0.5)


class Odd(nn.Module):
    """Dict output, a layer called twice, a shared module, branches joined by cat, an unused layer, two inputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 4, (1, 3), padding=(0, 1))
        self.right = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
        self.alias = self.right
        self.unused = nn.Linear(4, 4)
        self.norm = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.tied1 = nn.Linear(8, 8)
        self.tied2 = nn.Linear(8, 8)
        self.tied2.weight = self.tied1.weight
        self.head = nn.Linear(8, 5)

    def forward(self, x, scale):
        x = torch.relu(self.twice(torch.relu(self.twice(self.stem(x)))))
        x = torch.cat([self.left(x), self.alias(x)], 1)
        x = self.norm(x) * scale[:, :, None, None]
        x = self.tied2(self.tied1(x.mean((2, 3))))
        return {"logits": self.head(functional.relu(x))}


def labelled(seed):
    """Return a small network that was never trained, 96 inputs, and as labels what it answers."""
    torch.manual_seed(seed)
    x = torch.randn(96, 3, 8, 8)
    model = settle(Residual(width=12), x)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def settle(model, x):
    """Give BatchNorm layers statistics that fit, and put the network in eval mode."""
    model.train()
    with torch.no_grad():
        for _ in range(30):
            model(x)
    return model.eval()
