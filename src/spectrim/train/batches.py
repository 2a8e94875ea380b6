"""Training batches: their order, the part of each that a process gets, checks, and random crops and flips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torch.utils.data import BatchSampler, DistributedSampler

SEEDS_APART = 1_000_003  # the sampler adds the epoch to its seed; so far apart, no two seeds share an order


class TensorBatches:
    """Batches of images and labels in memory, in another order each epoch; each process gets its part of every batch.

    Args:
        images: Normalised inputs (N, C, H, W), floating-point.
        labels: Class numbers (N,).
        size: Images of a batch, of all processes together.
        seed: Of the order.

    Raises:
        ValueError: If a network cannot be trained on these.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, size: int, seed: int = 0) -> None:
        """Check the images and labels."""
        check_batch(images, labels)
        self.images, self.labels, self.size = images, labels.long(), min(size, len(images))
        self.batch_sampler = shuffled_batches(images, size=size, seed=seed)

    def __len__(self) -> int:
        """Return the batches of an epoch; an incomplete last one is left out."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's part of every batch."""
        for indices in drawn(self.batch_sampler):
            yield self.images[indices], self.labels[indices]

    def digest(self) -> str:
        """Return a short text that differs for other images: of their number, labels and some of their pixels."""
        found = hashlib.blake2b(f"{tuple(self.images.shape)} {self.size}".encode(), digest_size=8)
        found.update(self.labels.cpu().numpy().tobytes())
        found.update(self.images[:: max(1, len(self.images) // 16)].cpu().float().contiguous().numpy().tobytes())
        return found.hexdigest()


def shuffled_batches(images: Sized, *, size: int, seed: int = 0) -> BatchSampler:
    """Return a sampler of the indices of this process's part of each batch, in another order each epoch (see `set_epoch`).

    Args:
        images: With a length N. An epoch has all N indices, but for those of an incomplete last batch.
        size: Images of a batch, of all processes together; the part of one process is this divided by their number, rounded
            down, and at least one image.
        seed: Of the order, the same in every process.
    """
    rank, world = rank_and_world()
    order: DistributedSampler[Any] = DistributedSampler(
        images,  # type: ignore[arg-type]  # of which it takes the length only
        num_replicas=world,
        rank=rank,
        seed=seed * SEEDS_APART,
        drop_last=True,
    )
    return BatchSampler(order, max(1, min(size, len(images)) // world), drop_last=True)


def drawn(batch_sampler: BatchSampler) -> list[list[int]]:
    """Return the indices of every batch of this epoch, drawn on the CPU also where torch's default device is another."""
    with torch.device("cpu"):
        return list(batch_sampler)


def set_epoch(batches: Any, epoch: int) -> None:
    """Call `set_epoch` of a loader and of its samplers, where there is one."""
    samplers = [getattr(batches, name, None) for name in ("sampler", "batch_sampler")]
    inner = getattr(samplers[1], "sampler", None)
    for part in (batches, *samplers, inner):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process and how many there are: 0 and 1 without `torch.distributed`."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def check_batch(images: Tensor, labels: Tensor) -> None:
    """Check that a network can be trained on a batch without being ruined by it.

    Args:
        images: Inputs with the batch first, finite floating-point numbers.
        labels: Class numbers (N,), as many.

    Raises:
        ValueError: If they are anything else.
    """
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


def augment(images: Tensor, crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image by a random number of pixels, edges reflected, and mirror it at random.

    Args:
        images: Inputs (N, C, H, W).
        crop: Largest shift in pixels, in each direction; less where an image is smaller.
        flip: Whether half of the images are mirrored left to right.
        generator: Source of the random numbers, on the CPU.

    Returns:
        New images (N, C, H, W); the given ones are not changed.
    """
    count, _, height, width = images.shape
    if crop:
        reach = min(crop, height - 1, width - 1)
        padded = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
        shifts = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator, device="cpu").to(images.device)
        rows = shifts[0] + torch.arange(height, device=images.device)
        columns = shifts[1] + torch.arange(width, device=images.device)
        each = torch.arange(count, device=images.device)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
    if flip:
        mirrored = torch.rand(count, 1, 1, 1, generator=generator, device="cpu").to(images.device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    return images
