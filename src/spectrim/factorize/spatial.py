"""SpatialSVD: a kernel along one spatial axis, then one along the others, fitted in the response norm (Jaderberg 2014)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from spectrim.core.factorization import Factorization, Fit, Moments, Rank
from spectrim.core.layer import Layer
from spectrim.factorize.nested import Nested, nested, nested_losses
from spectrim.factorize.parts import spatial


@dataclass(frozen=True)
class SpatialSVD(Factorization):
    """kh x 1 convolution S -> r, then 1 x kw r -> T; with `axis=1` the width comes first.

    Args:
        axis: The spatial axis of the first factor; the second takes all others.

    Raises:
        ValueError: If the axis is not 0, 1 or 2.

    Reference:
        Jaderberg, Vedaldi, Zisserman: Speeding up convolutional neural networks with low rank expansions (2014), scheme 2.
    """

    axis: int = 0
    title: ClassVar[str] = "SpatialSVD"
    reference: ClassVar[str] = "Jaderberg et al. 2014, scheme 2"

    def __post_init__(self) -> None:
        """Check the axis."""
        if self.axis not in (0, 1, 2):
            raise ValueError(f"SpatialSVD was given axis={self.axis!r}; allowed are 0 (height first), 1 (width first) and 2")

    def fits(self, layer: Layer) -> Fit:
        """Need a kernel of more than one tap along the axis and along the others."""
        if self.axis >= len(layer.kernel):
            return Fit(f"its kernel has {len(layer.kernel)} spatial axes; axis {self.axis} is not there")
        if len(layer.kernel) < 2 or layer.kernel[self.axis] == 1 or math.prod(layer.kernel) == layer.kernel[self.axis]:
            return Fit(f"its kernel {layer.kernel} cannot be split at axis {self.axis}")
        return Fit()

    def full_rank(self, layer: Layer) -> int:
        """Return the smaller side of (S * k_axis) x (k_others * T) of one group."""
        outputs, inputs = (channels // layer.groups for channels in layer.channels)
        first = layer.kernel[self.axis]
        return min(inputs * first, math.prod(layer.kernel) // first * outputs)

    def candidates(self, layer: Layer) -> list[Rank]:
        """Return every rank."""
        return list(range(1, self.full_rank(layer) + 1)) if self.fits(layer) else []

    def parts(self, layer: Layer, rank: Rank) -> tuple[Layer, ...]:
        """Return the two convolutions."""
        self.check(layer, rank)
        assert isinstance(rank, int)
        outputs, inputs = layer.channels
        others = [axis for axis in range(len(layer.kernel)) if axis != self.axis]
        first = spatial(layer, (inputs, rank * layer.groups), [self.axis], None)
        return first, replace(spatial(layer, (rank * layer.groups, outputs), others, first), bias=layer.bias)

    def factors(self, weight: Tensor, rank: Rank, moments: Moments | None = None) -> tuple[Tensor, ...]:
        """Return (g, r, S, k_axis at its place) and (g, T, r, the others at theirs)."""
        assert isinstance(rank, int)
        split, permuted = self._split(weight, moments)
        return self._cut(nested(split, rank, permuted), rank, weight)

    def kernels(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> Iterator[Tensor]:
        """Yield every rank's kernel from one Cholesky factorization."""
        numbers = [rank for rank in ranks if isinstance(rank, int)]
        split, permuted = self._split(weight, moments)
        solution = nested(split, max(numbers), permuted)
        for rank in numbers:
            yield self.merge(self._cut(solution, rank, weight))

    def _cut(self, solution: Nested, rank: int, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the factors of one rank."""
        g, t, s = weight.shape[:3]
        kernel = weight.shape[3:]
        alone = [size if axis == self.axis else 1 for axis, size in enumerate(kernel)]
        rest = [1 if axis == self.axis else size for axis, size in enumerate(kernel)]
        return solution.basis[:, :, :rank].mT.reshape(g, rank, s, *alone), solution.second(rank).reshape(g, t, rank, *rest)

    def merge(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the product, tap by tap."""
        first, second = factors
        g, _, s = first.shape[:3]
        kernel = [max(pair) for pair in zip(first.shape[3:], second.shape[3:], strict=True)]
        product = torch.einsum("grsa,gtrb->gtsab", first.flatten(3), second.flatten(3))
        others = [size for axis, size in enumerate(kernel) if axis != self.axis]
        return product.reshape(g, -1, s, kernel[self.axis], *others).movedim(3, 3 + self.axis)

    def losses(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> list[float]:
        """Return the loss of every rank from one Cholesky factorization."""
        numbers = [rank for rank in ranks if isinstance(rank, int)]
        split, permuted = self._split(weight, moments)
        return nested_losses(nested(split, max(numbers), permuted), numbers, moments)

    def _split(self, weight: Tensor, moments: Moments | None) -> tuple[Tensor, Moments | None]:
        """Return the kernel as (g, T, S * k_axis, the other taps), and the moments in that order."""
        s, kernel = weight.shape[2], weight.shape[3:]
        split = weight.movedim(3 + self.axis, 3).flatten(4).flatten(2, 3)  # (g, T, S * k_axis, the others)
        if self.axis == 0 or moments is None or moments.covariance is None:
            return split, moments
        n, shape = s * math.prod(kernel), (s, *kernel)
        parted = moments.covariance.reshape(-1, *shape, *shape)
        moved = parted.movedim((2 + self.axis, 2 + self.axis + len(shape)), (2, 2 + len(shape)))
        return split, replace(moments, covariance=moved.reshape(-1, n, n))
