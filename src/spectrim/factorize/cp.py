"""CP: a sum of r separable kernels (Lebedev et al. 2015), by alternating least squares, the last factor by regression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from spectrim.factorize._base import (
    Factorization,
    Fit,
    Moments,
    Rank,
    grid,
    merged_losses,
    pointwise,
    regress_last,
    spatial,
)
from spectrim.layer import Layer

SWEEPS = 60
STEPS = 12


@dataclass(frozen=True)
class CP(Factorization):
    """1 x 1 convolution S -> r, one depthwise convolution per spatial axis, 1 x 1 r -> T.

    The weight is fitted by alternating least squares in the weight norm; with moments the last factor is then the
    regression in the input norm.

    Reference:
        Lebedev et al.: Speeding-up convolutional neural networks using fine-tuned CP-decomposition (2015).
    """

    title: ClassVar[str] = "CP"
    reference: ClassVar[str] = "Lebedev et al. 2015, section 3"

    def fits(self, layer: Layer) -> Fit:
        """Need a spatial kernel; the CP decomposition of a matrix is its SVD."""
        if set(layer.kernel) <= {1}:
            return Fit("it has no spatial kernel, and the CP decomposition of a matrix is ChannelSVD")
        return Fit()

    def full_rank(self, layer: Layer) -> int:
        """Return a bound: the product of all modes but the largest."""
        modes = _modes(layer)
        return math.prod(modes) // max(modes)

    def candidates(self, layer: Layer) -> list[Rank]:
        """Return a geometric grid."""
        return list(grid(self.full_rank(layer), STEPS)) if self.fits(layer) else []

    def parts(self, layer: Layer, rank: Rank) -> tuple[Layer, ...]:
        """Return the chain of convolutions."""
        self.check(layer, rank)
        assert isinstance(rank, int)
        outputs, inputs = layer.channels
        width = rank * layer.groups
        chain = [pointwise(layer, inputs, width, None)]
        depthwise = replace(layer, groups=width)
        for axis in range(len(layer.kernel)):
            chain.append(spatial(depthwise, (width, width), [axis], chain[-1]))
        return (*chain, replace(pointwise(layer, width, outputs, chain[-1]), bias=layer.bias))

    def factors(self, weight: Tensor, rank: Rank, moments: Moments | None = None) -> tuple[Tensor, ...]:
        """Return (g, r, S, ones), (g * r, 1, 1, one axis each) ..., (g, T, r, ones)."""
        assert isinstance(rank, int)
        g, t, s = weight.shape[:3]
        kernel = weight.shape[3:]
        groups = [_alternate(weight[index], rank) for index in range(g)]
        modes = [torch.stack(mode) for mode in zip(*groups, strict=True)]  # (g, size, r) for T, S, k1, ...
        exact = rank >= math.prod(weight.shape[1:]) // max(weight.shape[1:])
        if not exact:
            modes[0] = regress_last(weight.flatten(2), _products(modes[1:]), moments)
        ones = (1,) * len(kernel)
        depthwise = []
        for axis, size in enumerate(kernel):
            shape = [size if other == axis else 1 for other in range(len(kernel))]
            depthwise.append(modes[2 + axis].mT.reshape(g * rank, 1, 1, *shape))
        return modes[1].mT.reshape(g, rank, s, *ones), *depthwise, modes[0].reshape(g, t, rank, *ones)

    def merge(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the sum of the separable kernels."""
        g, r = factors[0].shape[:2]
        modes = [factors[0].flatten(2).mT, *(factor.reshape(g, r, -1).mT for factor in factors[1:-1])]
        product = factors[-1].flatten(2) @ _products(modes).mT
        merged: Tensor = product.unflatten(2, [mode.shape[1] for mode in modes])
        return merged

    def losses(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> list[float]:
        """Return the harm of each rank's own fit."""
        return merged_losses(self, weight, ranks, moments)


def _modes(layer: Layer) -> list[int]:
    return [channels // layer.groups for channels in layer.channels] + list(layer.kernel)


def _products(modes: Sequence[Tensor]) -> Tensor:
    """Return the column-wise Kronecker product of (g, size_i, r): (g, product of sizes, r)."""
    result = modes[0]
    for mode in modes[1:]:
        result = (result[:, :, None] * mode[:, None]).flatten(1, 2)
    return result


def _alternate(tensor: Tensor, rank: int) -> list[Tensor]:
    """Return CP factors (size, r) of a tensor, one a mode: exact at the bound, else alternating least squares."""
    sizes = tensor.shape
    largest = max(range(len(sizes)), key=lambda mode: sizes[mode])
    bound = math.prod(sizes) // sizes[largest]
    if rank >= bound:
        return _units(tensor, largest, rank)
    generator = torch.Generator().manual_seed(0)
    modes = []
    for mode, size in enumerate(sizes):  # leading singular vectors first, random columns after them
        left = torch.linalg.svd(tensor.movedim(mode, 0).flatten(1), full_matrices=False).U[:, :rank]
        extra = torch.randn(size, max(rank - left.shape[1], 0), generator=generator).to(tensor)
        modes.append(torch.cat([left, extra / math.sqrt(size)], 1))
    for _ in range(SWEEPS):
        for mode in range(len(sizes)):
            others = [modes[other] for other in range(len(sizes)) if other != mode]
            design = _products([other[None] for other in others])[0]  # (rest, r)
            gram = design.T @ design
            ridge = 1e-9 * gram.diagonal().mean() * torch.eye(rank).to(tensor)
            solution = torch.linalg.solve(gram + ridge, design.T @ tensor.movedim(mode, 0).flatten(1).T).T
            modes[mode] = solution
            if mode < len(sizes) - 1:
                modes[mode] = solution / solution.norm(dim=0).clamp_min(torch.finfo(tensor.dtype).tiny)
    return modes


def _units(tensor: Tensor, largest: int, rank: int) -> list[Tensor]:
    """Return the trivial exact decomposition: one unit tensor for each fibre along the largest mode."""
    fibres = tensor.movedim(largest, 0).flatten(1)  # (largest, bound)
    rest = [size for mode, size in enumerate(tensor.shape) if mode != largest]
    index = torch.cartesian_prod(*[torch.arange(size) for size in rest]).reshape(-1, len(rest))
    modes = []
    for position, size in enumerate(rest):
        unit = torch.zeros(size, rank).to(tensor)
        unit[index[:, position].to(tensor.device), torch.arange(len(index), device=tensor.device)] = 1
        modes.append(unit)
    padded = torch.zeros(tensor.shape[largest], rank).to(tensor)
    padded[:, : fibres.shape[1]] = fibres
    modes.insert(largest, padded)
    return modes
