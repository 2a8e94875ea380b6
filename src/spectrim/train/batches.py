"""Training batches: their order, each process's part of them, crops and flips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional


class Tensors:
    """Batches of images and labels in memory, in another order each epoch; each process gets its part of every batch."""

    def __init__(self, images: Tensor, labels: Tensor, *, size: int, seed: int = 0) -> None:
        """Check the images and labels."""
        check_batch(images, labels)
        labels = labels.long()
        self.images, self.labels, self.size, self.seed, self.number = images, labels, min(size, len(images)), seed, 0

    def __len__(self) -> int:
        """Return the batches of an epoch; an incomplete last one is left out."""
        return len(self.images) // self.size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.number = epoch

    def digest(self) -> str:
        """Return what tells these images from others: their number, labels and some of their pixels."""
        found = hashlib.blake2b(f"{tuple(self.images.shape)} {self.size}".encode(), digest_size=8)
        found.update(self.labels.cpu().long().numpy().tobytes())
        found.update(self.images[:: max(1, len(self.images) // 16)].cpu().float().contiguous().numpy().tobytes())
        return found.hexdigest()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's part of every batch."""
        rank, world = place()
        for chosen in order(len(self.images), self.size, self.seed, self.number):
            mine = chosen[rank::world]
            yield self.images[mine], self.labels[mine]


def tell_epoch(batches: Any, epoch: int) -> None:
    """Call `set_epoch` of a loader and of its samplers, where there is one."""
    parts: list[Any] = [batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None)]
    for part in parts:
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def check_batch(images: Tensor, labels: Tensor) -> None:
    """Raise a ValueError if a network cannot be trained on these, or would be ruined by them."""
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise ValueError(
            f"a batch is {type(images).__name__} and {type(labels).__name__}; it must be two tensors, images and labels"
        )
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; it must be one whole number per image")
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"there are {len(images)} images and {len(labels)} labels; it must be as many, and at least one")
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; it must be floating-point numbers, normalised as the network wants them")
    if not images.isfinite().all():
        raise ValueError("the images have NaN or infinity among them; give finite numbers")


def order(count: int, size: int, seed: int, epoch: int) -> list[Tensor]:
    """Return the indices of each batch of an epoch; an incomplete last batch is left out."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return list(torch.randperm(count, generator=generator, device="cpu")[: count // size * size].split(size))


def augment(images: Tensor, crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return images (N, C, H, W), each shifted by up to `crop` pixels (edges reflected) and mirrored at random."""
    count, _, height, width = images.shape
    if crop:
        reach = min(crop, height - 1, width - 1)
        padded = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
        shifts = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator, device="cpu").to(images.device)
        rows = shifts[0] + torch.arange(height, device=images.device)
        columns = shifts[1] + torch.arange(width, device=images.device)
        chosen = torch.arange(count, device=images.device)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[chosen, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
    if flip:
        coin = torch.rand(count, 1, 1, 1, generator=generator, device="cpu").to(images.device)
        images = torch.where(coin < 0.5, images.flip(3), images)
    return images


def place() -> tuple[int, int]:
    """Return this process's number and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
