"""Streaming means and cross-moments, exact enough to be inverted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKED = 1024  # lowered inputs from which on a Gram matrix is computed by blocks


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
    squares: Tensor | None = None
    other_shift: Tensor | None = None
    other_total: Tensor | None = None
    products: Tensor | None = None

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add observations x (g, M, d) and y (g, M, e)."""
        self.count += x.shape[1]
        if self.shift is None:
            self.shift = x.mean(1, keepdim=True)
        x = x - self.shift
        self.total = _plus(self.total, x.sum(1, keepdim=True, dtype=torch.float64))
        self.squares = _plus(self.squares, gram(x.flatten(0, 1)[None] if self.pooled else x))
        if y is not None:
            if self.other_shift is None:
                self.other_shift = y.mean(1, keepdim=True)
            y = y - self.other_shift
            self.other_total = _plus(self.other_total, y.sum(1, keepdim=True, dtype=torch.float64))
            self.products = _plus(self.products, y.mT @ x)

    @property
    def mean(self) -> Tensor:
        """Mean of x, (g, d)."""
        assert self.shift is not None and self.total is not None
        return self.shift[:, 0].double() + self.total[:, 0] / self.count

    @property
    def covariance(self) -> Tensor:
        """Covariance of x, (g, d, d); the average over the groups (1, d, d) where it is pooled."""
        assert self.squares is not None and self.total is not None
        squares = (self.squares + self.squares.mT) / 2  # rounding in single precision is not symmetric
        if self.pooled:
            total = self.total[:, 0]
            return (squares - (total.mT @ total)[None] / self.count) / (self.count * len(total))
        return (squares - self.total.mT @ self.total / self.count) / self.count

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
