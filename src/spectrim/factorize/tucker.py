"""Tucker2: 1 x 1, a small kernel, 1 x 1 (Kim et al. 2016), the input basis weighted and the rest by reduced-rank regression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from spectrim.core.factorization import Factorization, Fit, Moments, Rank
from spectrim.core.layer import Layer
from spectrim.factorize.algebra import output_metric, symmetric_roots
from spectrim.factorize.nested import nested
from spectrim.factorize.parts import grid, pointwise, spatial

STEPS = 12  # grid points per mode


@dataclass(frozen=True)
class Tucker2(Factorization):
    """1 x 1 convolution S -> r1, kernel r1 -> r2, 1 x 1 r2 -> T; the rank is (r1, r2).

    Reference:
        Kim et al.: Compression of deep convolutional neural networks for fast and low power mobile applications (2016).
    """

    title: ClassVar[str] = "Tucker2"
    reference: ClassVar[str] = "Kim et al. 2016, section 3.1"

    def fits(self, layer: Layer) -> Fit:
        """Need a spatial kernel and several channels on both sides of a group."""
        if set(layer.kernel) <= {1}:
            return Fit("it has no spatial kernel, so ChannelSVD does the same with one part less")
        return Fit() if min(layer.channels) // layer.groups > 1 else Fit("a group has one input or one output channel")

    def full_rank(self, layer: Layer) -> tuple[int, int]:
        """Return the ranks of the two mode unfoldings."""
        outputs, inputs = (channels // layer.groups for channels in layer.channels)
        taps = math.prod(layer.kernel)
        return min(inputs, taps * outputs), min(outputs, taps * inputs)

    def candidates(self, layer: Layer) -> list[Rank]:
        """Return a geometric grid of pairs that the unfoldings allow."""
        return self.multiples(layer, (1, 1))

    def multiples(self, layer: Layer, steps: Sequence[int]) -> list[Rank]:
        """Return such a grid of multiples."""
        if not self.fits(layer):
            return []
        taps, sizes = math.prod(layer.kernel), zip(self.full_rank(layer), steps, strict=True)
        first, second = ([step * n for n in grid(full // step, STEPS)] if full >= step else [] for full, step in sizes)
        return [(a, b) for a in first for b in second if a <= taps * b and b <= taps * a]

    def parts(self, layer: Layer, rank: Rank) -> tuple[Layer, ...]:
        """Return the three convolutions."""
        self.check(layer, rank)
        assert isinstance(rank, tuple)
        outputs, inputs = layer.channels
        narrow, wide = (number * layer.groups for number in rank)
        first = pointwise(layer, inputs, narrow, None)
        core = spatial(layer, (narrow, wide), range(len(layer.kernel)), first)
        return first, core, replace(pointwise(layer, wide, outputs, core), bias=layer.bias)

    def factors(self, weight: Tensor, rank: Rank, moments: Moments | None = None) -> tuple[Tensor, ...]:
        """Return (g, r1, S, ones), (g, r2, r1, *kernel) and (g, T, r2, ones)."""
        assert isinstance(rank, tuple)
        narrow, wide = rank
        g, t, s = weight.shape[:3]
        solution = nested(weight.flatten(3), narrow, moments)
        root, inverse = symmetric_roots(output_metric(weight, moments))
        left = torch.linalg.svd(root @ solution.explained.mT, full_matrices=False).U[:, :, :wide]  # (g, T, r2)
        second = solution.second(narrow).flatten(2)
        core = left.mT @ root @ second
        ones = (1,) * (weight.ndim - 3)
        return (
            solution.basis.mT.reshape(g, narrow, s, *ones),
            core.reshape(g, core.shape[1], narrow, *weight.shape[3:]),
            (inverse @ left).reshape(g, t, left.shape[2], *ones),
        )

    def merge(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the product."""
        first, core, last = factors
        product = torch.einsum("gas,gbak,gtb->gtsk", first.flatten(2), core.flatten(3), last.flatten(2))
        merged: Tensor = product.unflatten(3, core.shape[3:])
        return merged

    def losses(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> list[float]:
        """Return the loss of every pair: one Cholesky factorization, one small eigenproblem for each r1."""
        pairs = [rank for rank in ranks if isinstance(rank, tuple)]
        solution = nested(weight.flatten(3), max(first for first, _ in pairs), moments)
        root, _ = symmetric_roots(output_metric(weight, moments))
        total = (root @ solution.total @ root).diagonal(dim1=1, dim2=2).sum()
        scale = 0.5 if moments is not None else 1 / float(total.clamp_min(torch.finfo(total.dtype).tiny))
        kept: dict[int, Tensor] = {}
        for narrow in {first for first, _ in pairs}:
            rows = solution.explained[:, : narrow * solution.taps] @ root  # (g, r1 * k, T)
            kept[narrow] = torch.linalg.eigvalsh(rows.mT @ rows).flip(-1).clamp_min(0).cumsum(1).sum(0)
        return [max(0.0, float(total - kept[first][second - 1]) * scale) for first, second in pairs]
