"""Streaming means and cross-moments, exact enough to be inverted, and how far few images let them be trusted.

Shrinkage after Ledoit and Wolf (2004): a sample covariance S is replaced by (1 - r) S + r T with a target T of fewer
unknowns, r = E|S - C|^2 / |S - T|^2. The numerator is estimated from how much blocks of whole images differ, so positions of
one image, which are alike, do not count as independent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCKED = 1024  # lowered inputs from which on a Gram matrix is computed by blocks
BLOCKS = 16  # of images, in all, whose differences tell how far a covariance can be trusted
UNKNOWN = 0.2  # share of the target where there is one block only


@dataclass
class Squares:
    """The sum of x^T x over observations, in double precision, and over its blocks of |x^T x|^2 / (their observations)."""

    count: int = 0
    blocks: int = 0
    total: Tensor | None = None
    energy: Tensor | None = None

    def add(self, x: Tensor, blocks: int = 1) -> None:
        """Add observations x (g, M, d) of so many blocks, one behind the other."""
        for part in x.contiguous().chunk(blocks, 1):
            square = gram(part)
            self.total = _plus(self.total, square)
            self.energy = _plus(self.energy, torch.linalg.vector_norm(square, dim=(1, 2)).double() ** 2 / part.shape[1])
            self.count += part.shape[1]
            self.blocks += 1

    @property
    def mean(self) -> Tensor:
        """Second moment of x, (g, d, d), symmetric in spite of rounding."""
        assert self.total is not None
        return (self.total + self.total.mT) / (2 * self.count)

    def shrunk(self, sample: Tensor, target: Tensor) -> Tensor:
        """Return a sample covariance (g, d, d), of these squares, drawn to a target as far as its blocks differ."""
        share = self.share((sample - target).square().sum((1, 2)))
        return (1 - share) * sample + share * target

    def share(self, distance: Tensor) -> Tensor:
        """Return the target's share (g, 1, 1), where the sample is at such a squared distance (g,) from it."""
        assert self.energy is not None and self.total is not None
        if self.blocks < 2:
            return torch.full_like(distance, UNKNOWN)[:, None, None]
        energy = (self.total * self.total.mT).sum((1, 2)) / 2 + self.total.square().sum((1, 2)) / 2  # of the symmetric part
        error = (self.energy / self.count - energy / self.count**2) / (self.blocks - 1)
        return (error / distance.clamp_min(torch.finfo(distance.dtype).tiny)).clamp(0, 1)[:, None, None]


@dataclass
class Covariance:
    """Streaming means and cross-moments of x with itself, and of y with x, accumulated in double precision.

    Observations are taken relative to the first ones' mean, so that products in single precision are exact enough for
    inputs that hardly vary about a large mean. Where it is `pooled`, squares are summed over the groups.
    """

    pooled: bool = False
    count: int = 0
    shift: Tensor | None = None
    total: Tensor | None = None
    squares: Squares = field(default_factory=Squares)
    other_shift: Tensor | None = None
    other_total: Tensor | None = None
    products: Tensor | None = None

    def add(self, x: Tensor, y: Tensor | None = None, *, blocks: int = 1) -> None:
        """Add observations x (g, M, d) and y (g, M, e), of so many blocks of whole images, one behind the other."""
        self.count += x.shape[1]
        if self.shift is None:
            self.shift = x.mean(1, keepdim=True)
        x = x.contiguous() - self.shift
        self.total = _plus(self.total, x.sum(1, keepdim=True))
        self.squares.add(x.transpose(0, 1).flatten(0, 1)[None] if self.pooled else x, blocks)
        if y is not None:
            if self.other_shift is None:
                self.other_shift = y.mean(1, keepdim=True)
            y = y - self.other_shift
            self.other_total = _plus(self.other_total, y.sum(1, keepdim=True))
            self.products = _plus(self.products, y.mT @ x)

    @property
    def mean(self) -> Tensor:
        """Mean of x, (g, d)."""
        assert self.shift is not None and self.total is not None
        return self.shift[:, 0].double() + self.total[:, 0] / self.count

    @property
    def covariance(self) -> Tensor:
        """Covariance of x, (g, d, d); the average over the groups (1, d, d) where it is pooled."""
        assert self.total is not None
        if self.pooled:
            total = self.total[:, 0]
            return self.squares.mean - (total.mT @ total)[None] / (self.count**2 * len(total))
        return self.squares.mean - self.total.mT @ self.total / self.count**2

    @property
    def shrunk(self) -> Tensor:
        """The covariance of x, drawn to its own diagonal as far as images differ."""
        sample = self.covariance
        diagonal = sample.diagonal(dim1=1, dim2=2).clone()
        share = self.squares.share(sample.square().sum((1, 2)) - diagonal.square().sum(1))
        sample *= 1 - share
        sample.diagonal(dim1=1, dim2=2).copy_(diagonal)
        return sample

    @property
    def other_mean(self) -> Tensor:
        """Mean of y, (g, e)."""
        assert self.other_shift is not None and self.other_total is not None
        return self.other_shift[:, 0].double() + self.other_total[:, 0] / self.count

    @property
    def cross(self) -> Tensor:
        """Covariance of y with x, (g, e, d)."""
        assert self.products is not None and self.total is not None and self.other_total is not None
        return (self.products - self.other_total.mT @ self.total / self.count) / self.count


def gram(x: Tensor) -> Tensor:
    """Return x^T x of observations (g, M, d), (g, d, d); of a large one only blocks on and above the diagonal are computed."""
    if x.shape[2] < BLOCKED:
        return x.mT @ x
    result = x.new_empty(len(x), x.shape[2], x.shape[2])
    size = -(-x.shape[2] // 6)
    starts = range(0, x.shape[2], size)
    for i in starts:
        for j in starts[i // size :]:
            block = x[:, :, i : i + size].mT @ x[:, :, j : j + size]
            result[:, i : i + size, j : j + size] = block
            result[:, j : j + size, i : i + size] = block.mT
    return result


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term.double() if total is None else total.add_(term)
