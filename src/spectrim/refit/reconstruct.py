"""Block-wise reconstruction: gradient steps on a few small layers at once, towards the original's outputs. No labels.

After BRECQ (Li et al., ICLR 2021), for factors in place of rounding: minimise, over the factors of one block,

    sum_c mean (block(x') - y)_c^2 / var(y_c)

with x' the block's input in the compressed network, whose earlier blocks are done, and y the original network's output of
the block. Norms stay in eval mode, and nothing but the small layers that replaced planned ones is trained.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from spectrim.network.calling import Example, batch_size, call, count, evaluation_mode, first_line, head, map_tensors
from spectrim.network.copying import duplicate
from spectrim.refit.blocks import Block

FLOOR = 0.01  # of a channel's variance, relative to the mean over channels
SAME = 1e-3  # squared relative difference up to which a block by itself does what it does in the network
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Reconstruct:
    """Gradient steps, block after block, after the fits in closed form.

    Attributes:
        rate: Adam's learning rate at the start of each block; it falls to nothing along a cosine.
        steps: Gradient steps of each block.
        batch: Images of one step.
        mirror: Fit to the images' mirror images, too: the last axis turned round. Not for text, digits and other images that
            have a left and a right.
    """

    rate: float = 1e-3
    steps: int = 300
    batch: int = 64
    mirror: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        number = isinstance(self.rate, (int, float)) and not isinstance(self.rate, bool)
        if not number or not math.isfinite(self.rate) or self.rate <= 0:
            raise ValueError(f"reconstruct: rate is {self.rate!r}; it must be a number above 0, such as 1e-3")
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"reconstruct: {name} is {value!r}; it must be a whole number of at least 1")
        if not isinstance(self.mirror, bool):
            raise TypeError(f"reconstruct: mirror is {self.mirror!r}; it must be True or False")


@dataclass(frozen=True, eq=False)
class Task:
    """What blocks are reconstructed with.

    Attributes:
        model: The original network; hooks are added and removed, nothing else changes.
        small: The compressed network.
        batches: Images to fit.
        unseen: Others, on which the block's error is told, too.
        options: How.
        memory: Bytes that a block's inputs and outputs may take.
        seed: Of the order of the images.
        unit: Batches are multiples of so many, for networks whose examples belong together.
    """

    model: nn.Module
    small: nn.Module
    batches: Sequence[Example]
    unseen: Sequence[Example]
    options: Reconstruct
    memory: int
    seed: int
    unit: int


@dataclass(frozen=True, eq=False)
class Fitted:
    """A block after its steps.

    Attributes:
        tensors: Parameters by the layers' names and their own; none where there is a reason.
        images: How many were fitted to; mirror images are not counted.
        before: Mean squared error of the block's output, relative to the variance of each channel: on these images, and on
            unseen ones.
        after: The same after the steps.
        reason: Why the block cannot be reconstructed; empty if it can.
    """

    tensors: dict[str, Tensor]
    images: int = 0
    before: tuple[float, float] = (0.0, 0.0)
    after: tuple[float, float] = (0.0, 0.0)
    reason: str = ""


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Inputs of a block, what it should return, the weight of a channel's error, and how many images belong together."""

    x: Tensor
    y: Tensor
    weight: Tensor
    unit: int

    def error(self, block: nn.Module, index: Tensor) -> Tensor:
        """Return the mean squared error of some images, each channel relative to its variance."""
        index = index.to(self.x.device)
        error: Tensor = (self.weight * (block(self.x[index].to(self.weight)) - self.y[index]) ** 2).mean()
        return error

    def whole(self, block: nn.Module, batch: int) -> float:
        """Return the same for all images."""
        size = max(1, batch // self.unit) * self.unit
        with torch.no_grad():
            parts = torch.arange(len(self.x), device="cpu").split(size)
            return sum(float(self.error(block, part)) * len(part) for part in parts) / len(self.x)

    def drawn(self, options: Reconstruct, seed: int) -> Iterator[Tensor]:
        """Yield the images of each step, in an order drawn anew whenever too few are left of it."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        together = torch.arange(len(self.x), device="cpu").view(-1, self.unit)
        size = min(max(1, options.batch // self.unit), len(together))
        order = together[:0]
        for _ in range(options.steps):
            if len(order) < size:
                order = together[torch.randperm(len(together), generator=generator, device="cpu")]
            yield order[:size].flatten()
            order = order[size:]


class _Reached(BaseException):
    """The forward came to where it is to end; no `except Exception` of a network catches it."""


def fit_block(task: Task, block: Block) -> Fitted:
    """Return the parameters of a block's layers after its gradient steps; the networks stay as they are.

    Args:
        task: With what.
        block: From `find_blocks` of the compressed network.

    Raises:
        RuntimeError: If the forward does not come to the block for other inputs.
    """
    work, trained = _trainable(task.small, block)
    few = [head(task.batches[0], 2 * task.unit)]
    ends = [next(captured(network, block.name, few, output=output)) for network, output in _ends(task)]
    answer = next(captured(task.small, block.name, few, output=True))
    if reason := _flaw(work, ends[0], answer, list(trained.values())):
        return Fitted({}, reason=reason)
    copies = 1 + task.options.mirror
    room = task.memory // max(1, copies * sum(end[:1].numel() * end.element_size() for end in ends))
    batches = _first(task.batches, max(task.unit, room // task.unit * task.unit))
    copied = [*batches, *(mirrored(batch) for batch in batches if task.options.mirror)]
    last, dtype = task.small.get_submodule(block.layers[-1]), next(iter(trained.values())).dtype
    x, y = _pair(task, block, copied)
    weight = _weight(y, last, dtype)
    sets = [
        _Pairs(x, y, weight, task.unit),
        _Pairs(*_pair(task, block, _first(task.unseen, count(batches))), weight, task.unit),
    ]
    before = [pairs.whole(work, task.options.batch) for pairs in sets]
    _descend(work, list(trained.values()), sets[0], task.options, task.seed)
    after = [pairs.whole(work, task.options.batch) for pairs in sets]
    tensors = {name: value.detach().to(task.small.get_parameter(name).dtype) for name, value in trained.items()}
    return Fitted(tensors, count(batches), (before[0], before[1]), (after[0], after[1]))


def _pair(task: Task, block: Block, batches: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return a block's inputs in the compressed network, and its outputs in the original one."""
    x, y = (_whole(captured(network, block.name, batches, output=output), count(batches)) for network, output in _ends(task))
    return x, y


def _descend(work: nn.Module, trained: Sequence[Tensor], pairs: _Pairs, options: Reconstruct, seed: int) -> None:
    """Take the gradient steps."""
    optimizer = torch.optim.Adam(trained, lr=options.rate)
    schedule = CosineAnnealingLR(optimizer, options.steps)
    for index in pairs.drawn(options, seed):
        optimizer.zero_grad()
        pairs.error(work, index).backward()
        with torch.device("cpu"):  # where Adam counts its steps, whatever the default device
            optimizer.step()
        schedule.step()


def _ends(task: Task) -> tuple[tuple[nn.Module, bool], tuple[nn.Module, bool]]:
    """Return whose inputs and whose outputs of a block belong together."""
    return (task.small, False), (task.model, True)


def captured(model: nn.Module, name: str, batches: Sequence[Example], *, output: bool) -> Iterator[Tensor]:
    """Yield what a module is given, or what it returns, batch by batch; the forward ends there.

    Args:
        model: Run in eval mode; hooks are added and removed.
        name: The module.
        batches: Inputs.
        output: What it returns.

    Raises:
        RuntimeError: If the forward does not come to it.
    """
    found: list[Tensor] = []

    def keep(value: Tensor) -> None:
        found.append(value.detach().clone())
        raise _Reached

    module = model.get_submodule(name)
    if output:
        handle = module.register_forward_hook(lambda module, args, value: keep(value))
    else:
        handle = module.register_forward_pre_hook(lambda module, args: keep(args[0]), prepend=True)
    try:
        with evaluation_mode(model), torch.no_grad():
            for batch in batches:
                with contextlib.suppress(_Reached):
                    call(model, batch)
                if not found:
                    raise RuntimeError(
                        f"the forward takes another path for other inputs and does not come to {name!r}, so it cannot be "
                        "reconstructed; use reconstruct=None"
                    )
                yield found.pop()
    finally:
        handle.remove()


def mirrored(batch: Example) -> Example:
    """Return the mirror images of a batch: the last axis of every image turned round."""
    size = batch_size(batch)
    return map_tensors(lambda x: x.flip(-1) if x.ndim > 3 and len(x) == size else x, batch)


def _trainable(small: nn.Module, block: Block) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy of a block in which the planned layers alone are trained, in single precision at least, and what is."""
    module = small.get_submodule(block.name)
    work = duplicate(module).eval()
    if any(parameter.dtype in HALVES for parameter in work.parameters()):
        work = work.float()
    work.requires_grad_(requires_grad=False)
    names = {id(small.get_submodule(layer)): layer for layer in block.layers}
    trained: dict[str, Tensor] = {}
    for own, copied in zip(module.modules(), work.modules(), strict=True):
        if id(own) in names:
            copied.requires_grad_()
            trained |= {f"{names[id(own)]}.{name}": value for name, value in copied.named_parameters()}
    return work, trained


def _flaw(work: nn.Module, x: Tensor, wanted: Tensor, trained: Sequence[Tensor]) -> str:
    """Return why no gradient steps can be taken on a block; nothing if they can.

    Args:
        work: A copy of the block.
        x: Its input in the compressed network.
        wanted: Its output there.
        trained: What is to be trained.
    """
    try:
        found = work(x.to(trained[0].dtype))
        if found.shape != wanted.shape or _distance(found.detach(), wanted) > SAME:
            return "by itself it does not do what it does in the network"
        if found.requires_grad:
            found.square().mean().backward()
    except RuntimeError as error:
        return f"it cannot be trained by itself, {first_line(error)}"
    if any(value.grad is None for value in trained):
        return "no gradient goes through it"
    return ""


def _distance(found: Tensor, wanted: Tensor) -> float:
    """Return the squared difference relative to what is wanted."""
    return float((found - wanted).float().square().sum()) / max(float(wanted.float().square().sum()), torch.finfo().tiny)


def _first(batches: Sequence[Example], images: int) -> list[Example]:
    """Return the first so many images, in batches."""
    chosen = []
    for batch in batches:
        if images > 0:
            chosen.append(head(batch, images) if batch_size(batch) > images else batch)
        images -= batch_size(batch)
    return chosen


def _whole(parts: Iterator[Tensor], images: int) -> Tensor:
    """Return all parts as one tensor; no more than one of them is in memory beside it."""
    whole, done = torch.empty(0), 0
    for part in parts:
        if not done:
            whole = part.new_empty(images, *part.shape[1:])
        whole[done : done + len(part)] = part
        done += len(part)
    return whole


def _weight(y: Tensor, last: nn.Module, dtype: torch.dtype) -> Tensor:
    """Return one over the variance of each channel, which is the last axis of what ends in a linear layer."""
    linear = any(isinstance(module, nn.Linear) for module in last.modules())
    channel = y.ndim - 1 if linear else 1
    variance = y.to(dtype).var([axis for axis in range(y.ndim) if axis != channel], correction=0, keepdim=True)
    least = max(FLOOR * float(variance.mean()), torch.finfo(dtype).tiny)
    return 1 / variance.clamp_min(least)
