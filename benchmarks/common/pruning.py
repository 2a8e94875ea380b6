"""Torch-Pruning as a careful user would run it: which channels it drops, and how many, so that a network takes a given time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.images import LabelledImages

IMPORTANCES = {"magnitude": "GroupMagnitude", "Taylor": "GroupTaylor", "Hessian": "GroupHessian"}
LARGEST = 0.95  # pruning ratio
ALIKE = 1.01  # times that differ by less are the same
Slopes = Mapping[str, Mapping[str, Tensor]]  # importance to gradients by name of the parameter


@dataclass(frozen=True)
class Way:
    """How channels are chosen, globally.

    Attributes:
        importance: See `IMPORTANCES`.
        scope: Name of what may be pruned, of those that a network has.
        multiple: Of which widths stay multiples.
    """

    importance: str
    scope: str
    multiple: int

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.importance}, {self.scope}, multiples of {self.multiple}"


def torch_pruning() -> Any:
    """Import Torch-Pruning.

    Raises:
        SystemExit: If it is not installed.
    """
    try:
        import torch_pruning
    except ImportError:
        raise SystemExit("this benchmark needs Torch-Pruning: pip install torch-pruning==1.6.1") from None
    return torch_pruning


def importance(name: str) -> Any:
    """Return a criterion of Torch-Pruning, with its own defaults."""
    return getattr(torch_pruning().importance, f"{IMPORTANCES[name]}Importance")()


def slopes(model: nn.Module, images: LabelledImages) -> Slopes:
    """Return the gradients of the labels' cross-entropy that criteria look at: their mean, and their root mean square.

    Torch-Pruning 1.6.1 forgets all images but the last (`GroupHessianImportance.accumulate_grad` asks for names among
    parameters), so squares are added up here, and it is given their root once.
    """
    other = copy.deepcopy(model).eval()
    sums = {name: torch.zeros_like(value) for name, value in other.named_parameters()}
    squares = {name: torch.zeros_like(value) for name, value in sums.items()}
    for x, y in zip(images[0].split(1), images[1].split(1), strict=True):
        other.zero_grad()
        functional.cross_entropy(other(x), y).backward()
        for name, value in other.named_parameters():
            assert value.grad is not None
            sums[name] += value.grad
            squares[name] += value.grad.square()
    count = len(images[1])
    roots = {name: (value / count).sqrt() for name, value in squares.items()}
    return {"Taylor": {name: value / count for name, value in sums.items()}, "Hessian": roots}


def pruned(model: nn.Module, example: Tensor, way: Way, ratio: float, *, slopes: Slopes, leave: tuple[str, ...]) -> nn.Module:
    """Return a copy of a network without that share of its channels.

    Args:
        model: Traced by Torch-Pruning.
        example: A batch of one image.
        way: Which channels.
        ratio: Share of all channels in reach that goes.
        slopes: See there.
        leave: Name patterns of layers whose outputs stay.
    """
    small = copy.deepcopy(model).eval()
    layers = {name: layer for name, layer in small.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    criterion = importance(way.importance)
    pruner = torch_pruning().pruner.BasePruner(
        small,
        example,
        importance=criterion,
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=[layer for name, layer in layers.items() if any(fnmatch(name, pattern) for pattern in leave)],
        round_to=way.multiple,
    )
    if way.importance in slopes:
        for name, parameter in small.named_parameters():
            parameter.grad = slopes[way.importance][name].clone()
        if way.importance == "Hessian":
            criterion.accumulate_grad(small)
    pruner.step()
    small.zero_grad()
    return small


def fitting(time_of: Callable[[float], float], limit: float, known: dict[float, float], *, steps: int = 6) -> float | None:
    """Return the pruning ratio whose network takes the most time within a limit, of those tried; None if none is within.

    Times fall in steps, and not always: a layer whose width would be rounded to nothing is left as it is. So an interval is cut
    until a time is within one per cent of the limit.

    Args:
        time_of: From a pruning ratio to the time that its network takes, the original's being 1.
        limit: The time.
        known: Ratios to times that are known already; grows.
        steps: How often the interval is cut, at most.
    """
    for _ in range(steps):
        within = {ratio: time for ratio, time in known.items() if time <= ALIKE * limit}
        high = min(within, default=LARGEST)
        low = max((ratio for ratio in known if ratio < high), default=0.0)
        if max(within.values(), default=0.0) >= limit / ALIKE or high - low < 0.002:
            break
        share = (known.get(low, 1.0) - limit) / max(known.get(low, 1.0) - known.get(high, 0.0), 1e-9)
        ratio = low + min(max(share, 0.3), 0.7) * (high - low)
        known[ratio] = time_of(ratio)
    within = {ratio: time for ratio, time in known.items() if time <= ALIKE * limit}
    return max(within, key=lambda ratio: (within[ratio], -ratio), default=None)


class Shortcut(nn.Module):
    """A block of examples/cifar_resnet.py, with a convolution where its shortcut pads: Torch-Pruning can follow that."""

    def __init__(self, block: Any) -> None:
        """Take the layers of the block over."""
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        inputs, outputs = block.conv1.in_channels, block.conv2.out_channels
        self.shortcut: nn.Module = nn.Identity()
        if (inputs, block.stride) != (outputs, 1):
            self.shortcut = nn.Conv2d(inputs, outputs, 1, block.stride, bias=False)
            nn.init.zeros_(self.shortcut.weight)
            start = (outputs - inputs) // 2
            self.shortcut.weight.data[start : start + inputs, :, 0, 0] = torch.eye(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Do what the block does."""
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def with_convolutions(model: Any) -> nn.Module:
    """Return a copy of a network of examples/cifar_resnet.py, the same function, with such blocks."""
    other = copy.deepcopy(model)
    for stage in (other.layer1, other.layer2, other.layer3):
        for index, block in enumerate(stage):
            stage[index] = Shortcut(block)
    return other  # type: ignore[no-any-return]
