"""CP: a sum of r separable kernels, by alternating least squares, the last factor by regression."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from spectrim.core.factorization import Factorization, Fit, Moments, Rank
from spectrim.core.layer import Layer
from spectrim.factorize.algebra import (
    channel_metric,
    output_metric,
    regress_last,
    regressed_harm,
    regression_slope,
    symmetric_roots,
)
from spectrim.factorize.nested import left_vectors
from spectrim.factorize.parts import grid, pointwise, spatial

SWEEPS = 60  # of alternating least squares
SWEEPS_NEAR = 10  # from factors of a weight that was nearly the same
SENSITIVITY = (0.03, 3e-4)  # weight of the terms' own squared norms in the first and in the last sweep
WIDTH = 2  # dimensions of each mode in which they work, in units of the rank
STEP = 1.32  # ratio of neighbouring ranks on the menu
WORK = 200_000_000  # multiply-adds of half a sweep: rank times the weight's elements
_fits = WeakTensorKeyDictionary()  # of layers whose moments are still in memory, by their C: the kernel, G and what was found


@dataclass(frozen=True)
class CP(Factorization):
    """1 x 1 convolution S -> r, depthwise convolution, 1 x 1 r -> T.

    The weight is fitted by alternating least squares; with moments after weighting its outputs by G^1/2 and its inputs by
    their covariance, and the last factor is then the regression in the input norm.

    Args:
        depthwise: `axes`: every axis of the kernel is a mode of its own and gets a depthwise convolution (four modes for a
            2-D kernel). `kernel`: the kernel is one mode, with one depthwise convolution of the kernel's size.

    Raises:
        ValueError: If `depthwise` is another word.

    Reference:
        Lebedev et al.: Speeding-up convolutional neural networks using fine-tuned CP-decomposition (2015). For `kernel`: Guo
        et al.: Network decoupling: from regular to depthwise separable convolutions (2018). That terms must not cancel each
        other: Phan et al.: Stable low-rank tensor decomposition for compression of convolutional neural network (2020).
    """

    depthwise: str = "axes"
    title: ClassVar[str] = "CP"
    reference: ClassVar[str] = "Lebedev et al. 2015, section 3; Guo et al. 2018"

    def __post_init__(self) -> None:
        """Check the option."""
        if self.depthwise not in ("axes", "kernel"):
            raise ValueError(f"CP was given depthwise={self.depthwise!r}; allowed are 'axes' and 'kernel'")

    def fits(self, layer: Layer) -> Fit:
        """Need a spatial kernel; the CP decomposition of a matrix is its SVD."""
        if set(layer.kernel) <= {1}:
            return Fit("it has no spatial kernel, and the CP decomposition of a matrix is ChannelSVD")
        return Fit()

    def full_rank(self, layer: Layer) -> int:
        """Return a bound: the product of all modes but the largest."""
        modes = [channels // layer.groups for channels in layer.channels] + self._sizes(layer.kernel)
        return math.prod(modes) // max(modes)

    def candidates(self, layer: Layer) -> list[Rank]:
        """Return a geometric grid, as far as alternating least squares is quick."""
        limit = max(1, WORK * layer.groups // math.prod(layer.weight))
        full = self.full_rank(layer)
        steps = 1 + math.ceil(math.log(full) / math.log(STEP))
        return [rank for rank in grid(full, steps) if rank <= limit] if self.fits(layer) else []

    def parts(self, layer: Layer, rank: Rank) -> tuple[Layer, ...]:
        """Return the chain of convolutions."""
        self.check(layer, rank)
        assert isinstance(rank, int)
        outputs, inputs = layer.channels
        width = rank * layer.groups
        chain = [pointwise(layer, inputs, width, None)]
        for axes in self._axes(layer.kernel):
            chain.append(spatial(replace(layer, groups=width), (width, width), axes, chain[-1]))
        return (*chain, replace(pointwise(layer, width, outputs, chain[-1]), bias=layer.bias))

    def factors(self, weight: Tensor, rank: Rank, moments: Moments | None = None) -> tuple[Tensor, ...]:
        """Return (g, r, S, ones), (g * r, 1, 1, its axes) for each depthwise part, (g, T, r, ones)."""
        return next(self._fitted(weight, [rank], moments, self._roots(weight, moments)))

    def followed(
        self, weight: Tensor, rank: Rank, last: Sequence[Tensor], moments: Moments | None = None
    ) -> tuple[Tensor, ...]:
        """Return factors found from the last ones: a fit from the beginning ends elsewhere, even for their own product."""
        return next(self._fitted(weight, [rank], moments, self._roots(weight, moments), last))

    def losses(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> list[float]:
        """Return the harm of each rank's own fit."""
        slope, fits = regression_slope(weight, moments), self._fitted(weight, ranks, moments, self._roots(weight, moments))
        return [regressed_harm(weight, self.merge(factors), moments, slope) for factors in fits]

    @staticmethod
    def _roots(weight: Tensor, moments: Moments | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return G^1/2 (g, T, T), Cs^1/2 and Cs^-1/2 (g, S, S), Cs the input covariance averaged over the taps."""
        root, _ = symmetric_roots(output_metric(weight, moments))
        return root, *symmetric_roots(channel_metric(weight, moments))

    def _fitted(
        self,
        weight: Tensor,
        ranks: Sequence[Rank],
        moments: Moments | None,
        roots: tuple[Tensor, Tensor, Tensor],
        last: Sequence[Tensor] = (),
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield the factors of each rank; what the ranks share is computed once. `last` are factors to start from."""
        known = {} if last else _known(weight, moments)
        g, t, s = weight.shape[:3]
        kernel = weight.shape[3:]
        sizes = (t, s, *self._sizes(kernel))
        root, scale, inverse = roots
        weighted = torch.einsum("gut,gtsk,gsv->guvk", root, weight.flatten(3), scale).reshape(g, *sizes)
        spaces: list[list[Tensor]] = []  # of every unfolding, once they are needed
        ones = (1,) * len(kernel)
        for rank in ranks:
            assert isinstance(rank, int)
            if (self, rank) in known:
                yield known[self, rank]
                continue
            if rank >= math.prod(sizes) // max(sizes):
                groups = [_units(tensor, rank) for tensor in weight.reshape(g, *sizes)]
                modes = [torch.stack(mode) for mode in zip(*groups, strict=True)]
            else:
                spaces = spaces or [
                    [left_vectors(tensor.movedim(mode, 0).flatten(1)) for mode in range(len(sizes))] for tensor in weighted
                ]
                starts = self._modes(last, root, scale) if last else [_start(left, rank) for left in spaces]
                groups = [_alternate(*each, near=bool(last)) for each in zip(weighted, starts, spaces, strict=True)]
                modes = [torch.stack(mode) for mode in zip(*groups, strict=True)]  # (g, size, r) for T, S, kernel
                modes[1] = inverse @ modes[1]
                modes[0] = regress_last(weight.flatten(2), _products(modes[1:]), moments)
            middle = []
            for mode, axes in zip(modes[2:], self._axes(kernel), strict=True):
                shape = [size if axis in axes else 1 for axis, size in enumerate(kernel)]
                middle.append(mode.mT.reshape(g * rank, 1, 1, *shape))
            known[self, rank] = modes[1].mT.reshape(g, rank, s, *ones), *middle, modes[0].reshape(g, t, rank, *ones)
            yield known[self, rank]

    def _modes(self, factors: Sequence[Tensor], root: Tensor, scale: Tensor) -> list[list[Tensor]]:
        """Return the modes (size, r) of each group behind factors, weighted and scaled as in the fit."""
        g, r = factors[0].shape[:2]
        first, rest = root @ factors[-1].flatten(2), [scale @ factors[0].flatten(2).mT]
        rest += [factor.reshape(g, r, -1).mT for factor in factors[1:-1]]
        for index, mode in enumerate(rest):
            length = mode.norm(dim=1, keepdim=True).clamp_min(torch.finfo(mode.dtype).tiny)
            first, rest[index] = first * length, mode / length
        return [list(group) for group in zip(first, *rest, strict=True)]

    def merge(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the sum of the separable kernels."""
        g, r = factors[0].shape[:2]
        modes = [factors[0].flatten(2).mT, *(factor.reshape(g, r, -1).mT for factor in factors[1:-1])]
        product = factors[-1].flatten(2) @ _products(modes).mT
        kernel = [max(sizes) for sizes in zip(*(factor.shape[3:] for factor in factors[1:-1]), strict=True)]
        return product.reshape(*product.shape[:2], -1, *kernel)

    def _axes(self, kernel: Sequence[int]) -> list[Sequence[int]]:
        """Return the axes of each depthwise part."""
        every = range(len(kernel))
        return [every] if self.depthwise == "kernel" else [[axis] for axis in every]

    def _sizes(self, kernel: Sequence[int]) -> list[int]:
        """Return the sizes of the modes that the kernel makes."""
        return [math.prod(kernel)] if self.depthwise == "kernel" else list(kernel)


def _known(weight: Tensor, moments: Moments | None) -> dict[Any, tuple[Tensor, ...]]:
    """Return the factors that were found so far for a kernel in this norm, by method and rank; new ones are put there, too."""
    if moments is None or moments.covariance is None:
        return {}
    known: dict[Any, tuple[Tensor, ...]]
    kernel, gradient, known = _fits.get(moments.covariance, (None, None, {}))
    if kernel is None or gradient is not moments.gradient or not torch.equal(kernel, weight):
        known = {}
        _fits[moments.covariance] = weight, moments.gradient, known
    return known


def _products(modes: Sequence[Tensor]) -> Tensor:
    """Return the column-wise Kronecker product of (g, size_i, r): (g, product of sizes, r)."""
    result = modes[0]
    for mode in modes[1:]:
        result = (result[:, :, None] * mode[:, None]).flatten(1, 2)
    return result


def _alternate(tensor: Tensor, modes: list[Tensor], spaces: Sequence[Tensor], *, near: bool) -> list[Tensor]:
    """Return CP factors (size, r) of a tensor, one a mode, by alternating least squares.

    Large tensors are first compressed to the leading `WIDTH` * r singular vectors of each unfolding (CANDELINC). The sum of the
    terms' squared norms counts a little, less from sweep to sweep: else large terms grow that cancel each other, and small
    changes of a factor change the kernel much. Near a solution the norms of the steps count instead, so that a kernel that
    already has these factors keeps them.

    Args:
        tensor: (T, S, kernel modes).
        modes: Where to start (size, r); r below the bound from which on a decomposition is trivially exact.
        spaces: Left singular vectors (size, at most size) of every unfolding.
        near: Whether the start is nearly the solution; then few sweeps are enough.
    """
    rank = modes[0].shape[1]
    bases = [space[:, : WIDTH * rank] if WIDTH * rank < len(space) else None for space in spaces]
    for mode, basis in enumerate(bases):
        if basis is not None:
            tensor = torch.tensordot(tensor, basis, ([mode], [0])).movedim(-1, mode)
            modes[mode] = basis.T @ modes[mode]
    flat, sizes = tensor.reshape(len(tensor), -1), tensor.shape
    grams = [mode.T @ mode for mode in modes]
    first, last = SENSITIVITY
    for sweep in range(SWEEPS_NEAR if near else SWEEPS):
        ridge = last if near else first * (last / first) ** (sweep / (SWEEPS - 1))
        rest = _products([mode[None] for mode in modes[1:]])[0]  # (S * kernel, r)
        modes[0] = torch.linalg.solve(*_system(flat @ rest, grams, 0, ridge, modes[0] if near else None)).T
        grams[0] = modes[0].T @ modes[0]
        seen = (flat.T @ modes[0]).unflatten(0, sizes[1:])  # (S, k1, ..., r)
        for mode in range(1, len(sizes)):
            inner, start = _inner(seen, modes, mode), modes[mode] if near else None
            modes[mode] = torch.linalg.solve(*_system(inner, grams, mode, ridge, start)).T
            if mode < len(sizes) - 1:
                length = modes[mode].norm(dim=0).clamp_min(torch.finfo(tensor.dtype).tiny)
                modes[mode] = modes[mode] / length
            grams[mode] = modes[mode].T @ modes[mode]
    return [mode if basis is None else basis @ mode for mode, basis in zip(modes, bases, strict=True)]


def _start(spaces: Sequence[Tensor], rank: int) -> list[Tensor]:
    """Return the leading singular vectors of every unfolding, and random columns after them."""
    generator = torch.Generator().manual_seed(0)
    modes = []
    for space in spaces:
        left = space[:, :rank]
        extra = torch.randn(len(space), max(rank - left.shape[1], 0), generator=generator, device="cpu").to(space)
        modes.append(torch.cat([left, extra / math.sqrt(len(space))], 1))
    return modes


def _system(inner: Tensor, grams: Sequence[Tensor], mode: int, ridge: float, middle: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return matrix (r, r) and right-hand side (r, size) of the least-squares factor of one mode.

    Args:
        inner: The tensor, contracted with all other modes, (size, r).
        grams: Gram matrices (r, r) of all modes.
        mode: Which one is wanted.
        ridge: Weight of the terms' own squared norms.
        middle: What they are measured from, (size, r); by default zero.
    """
    gram = torch.stack([gram for other, gram in enumerate(grams) if other != mode]).prod(0)
    own = ridge * gram.diagonal() + torch.finfo(gram.dtype).tiny  # of a layer of zeros nothing is left
    inner = inner if middle is None else inner + own * middle
    return gram + torch.diag(own), inner.T


def _inner(seen: Tensor, modes: Sequence[Tensor], mode: int) -> Tensor:
    """Return the tensor, contracted over the outputs (S, k1, ..., r), contracted with all modes but one: (size, r)."""
    for other in reversed(range(1, len(modes))):
        if other != mode:
            shape = [1] * (seen.ndim - 1)
            shape[other - 1] = len(modes[other])
            seen = (seen * modes[other].reshape(*shape, -1)).sum(other - 1, keepdim=True)
    return seen.reshape(-1, seen.shape[-1])


def _units(tensor: Tensor, rank: int) -> list[Tensor]:
    """Return the trivial exact decomposition: one unit tensor for each fibre along the largest mode."""
    largest = max(range(tensor.ndim), key=lambda mode: tensor.shape[mode])
    fibres = tensor.movedim(largest, 0).flatten(1)  # (largest, bound)
    rest = [size for mode, size in enumerate(tensor.shape) if mode != largest]
    index = torch.cartesian_prod(*[torch.arange(size, device="cpu") for size in rest]).reshape(-1, len(rest))
    modes = []
    for position, size in enumerate(rest):
        unit = tensor.new_zeros(size, rank)
        unit[index[:, position].to(tensor.device), torch.arange(len(index), device=tensor.device)] = 1
        modes.append(unit)
    padded = tensor.new_zeros(tensor.shape[largest], rank)
    padded[:, : fibres.shape[1]] = fibres
    modes.insert(largest, padded)
    return modes
