"""TensorTrain: a chain of convolutions along the modes S, k1, ..., T; for a linear layer a TT-matrix of two cores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from spectrim.core.factorization import Factorization, Fit, Moments, Rank
from spectrim.core.layer import Layer
from spectrim.factorize.algebra import channel_metric, harm, output_metric, regress_last, symmetric_roots
from spectrim.factorize.parts import grid, pointwise, spatial

STEPS = 16


@dataclass(frozen=True)
class TensorTrain(Factorization):
    """1 x 1 S -> r1, one convolution along each spatial axis r_i -> r_(i+1), 1 x 1 -> T; for Linear a TT-matrix.

    The rank of a convolution is a tuple of one number more than it has spatial axes; that of a linear layer one number. A
    linear layer (T, S) = (t1 t2, s1 s2) becomes a 1 x 1 Conv1d s1 -> t1 r, reshapes and a Linear r s2 -> t2. Cores come
    from TT-SVD; with moments the outputs are weighted by G^1/2 and the inputs by their covariance before it, and the last
    core is the regression in the input norm.

    Reference:
        Oseledets: Tensor-train decomposition (2011); Novikov et al.: Tensorizing neural networks (2015), for TT-matrix.
    """

    title: ClassVar[str] = "TensorTrain"
    reference: ClassVar[str] = "Oseledets 2011; Novikov et al. 2015, section 3"

    def fits(self, layer: Layer) -> Fit:
        """Need a spatial kernel, or a linear layer on single vectors whose sides are no primes."""
        if layer.kind == "Linear":
            if any(len(shape) != 1 for shape in layer.inputs):
                return Fit("it acts on more than one vector per example, which a TT-matrix of stock modules cannot")
            prime = next((size for size in layer.weight if divisors(size)[0] == 1), None)
            return Fit(f"its side {prime} has no two factors") if prime else Fit()
        return Fit("it has no spatial kernel, so ChannelSVD is shorter") if set(layer.kernel) <= {1} else Fit()

    def full_rank(self, layer: Layer) -> Rank:
        """Return the ranks of the unfoldings."""
        if layer.kind == "Linear":
            (t1, t2), (s1, s2) = (divisors(size) for size in layer.weight)
            return min(t1 * s1, t2 * s2)
        outputs, inputs = (channels // layer.groups for channels in layer.channels)
        sizes = [inputs, *layer.kernel, outputs]
        return tuple(min(math.prod(sizes[:cut]), math.prod(sizes[cut:])) for cut in range(1, len(sizes)))

    def candidates(self, layer: Layer) -> list[Rank]:
        """Return a geometric grid along the line from rank 1 to full rank."""
        if not self.fits(layer):
            return []
        full = self.full_rank(layer)
        if isinstance(full, int):
            return list(grid(full, STEPS))
        sizes = [layer.channels[1] // layer.groups, *layer.kernel, layer.channels[0] // layer.groups]
        shares = [share / max(full) for share in grid(max(full), STEPS)]
        return sorted({_possible([max(1, math.ceil(share * limit)) for limit in full], sizes) for share in shares})

    def multiples(self, layer: Layer, steps: Sequence[int]) -> list[Rank]:
        """Return the grid with each rank lowered to a multiple, or raised to the first, where the neighbours allow it."""
        sizes = [layer.channels[1] // layer.groups, *layer.kernel, layer.channels[0] // layer.groups]
        found = set()
        for rank in self.candidates(layer):
            assert isinstance(rank, tuple)
            near = tuple(max(step, number // step * step) for number, step in zip(rank, steps, strict=True))
            found |= {near} if _possible(list(near), sizes) == near else set()
        return sorted(found)

    def parts(self, layer: Layer, rank: Rank) -> tuple[Layer, ...]:
        """Return the chain."""
        self.check(layer, rank)
        outputs, inputs = layer.channels
        if isinstance(rank, int):
            return _linear_parts(layer, rank)
        widths = [number * layer.groups for number in rank]
        chain = [pointwise(layer, inputs, widths[0], None)]
        for axis in range(len(layer.kernel)):
            chain.append(spatial(layer, (widths[axis], widths[axis + 1]), [axis], chain[-1]))
        return (*chain, replace(pointwise(layer, widths[-1], outputs, chain[-1]), bias=layer.bias))

    def factors(self, weight: Tensor, rank: Rank, moments: Moments | None = None) -> tuple[Tensor, ...]:
        """Return the cores; those of a linear layer are (1, t1 r, s1, 1), (1, t2, r s2) and a scale (T, 1, 1, 1)."""
        if isinstance(rank, int):
            return _linear_factors(weight, rank)
        g, t, s = weight.shape[:3]
        kernel = weight.shape[3:]
        ones = [1] * len(kernel)
        root, _ = symmetric_roots(output_metric(weight, moments))
        scale, inverse = symmetric_roots(channel_metric(weight, moments))
        rest = torch.einsum("gut,gtsk,gsv->gvku", root, weight.flatten(3), scale).flatten(1, 2)  # (g, S * kernel, T)
        cores, projection, before = [], weight.new_ones(g, 1, 1), 1
        for position, size in enumerate([s, *kernel]):
            u, values, vt = torch.linalg.svd(rest.reshape(g, before * size, -1), full_matrices=False)
            width = rank[position]
            core = _pad(u[:, :, :width], width)  # (g, before * size, width)
            core = inverse @ core if position == 0 else core
            rest = _pad(values[:, :width, None] * vt[:, :width], width, 1)
            shape = [size if axis == position - 1 else 1 for axis in range(len(kernel))]
            inputs = s if position == 0 else before  # the first core has the input channels where others have the rank before
            axes = core.mT if position == 0 else core.reshape(g, before, size, width).permute(0, 3, 1, 2)
            cores.append(axes.reshape(g, width, inputs, *shape))
            projection = torch.einsum("gnb,gbkr->gnkr", projection, core.reshape(g, before, size, width)).flatten(1, 2)
            before = width
        return *cores, regress_last(weight.flatten(2), projection, moments).reshape(g, t, before, *ones)

    def merge(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the product of the chain."""
        first, *middle, last = factors
        if middle[0].ndim == 3:  # of a linear layer
            outputs, (t2, width) = len(last), middle[0].shape[1:]
            t1, s1 = outputs // t2, first.shape[2]
            rank = first.shape[1] // t1
            product = torch.einsum("art,brs->abts", first.reshape(t1, rank, s1), middle[0].reshape(t2, rank, width // rank))
            return last.reshape(1, outputs, 1) * product.reshape(1, outputs, -1)
        product = first.flatten(2)[..., None]  # (g, r1, S, taps so far)
        for core in middle:
            product = torch.einsum("grsk,gqrl->gqskl", product, core.flatten(3)).flatten(3)
        kernel = [core.flatten(3).shape[3] for core in middle]
        merged: Tensor = torch.einsum("gtr,grsk->gtsk", last.flatten(2), product).unflatten(3, kernel)
        return merged

    def losses(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> list[float]:
        """Return the harm of each rank's own fit."""
        return [harm(weight, self.merge(self.factors(weight, rank, moments)), moments) for rank in ranks]


def divisors(size: int) -> tuple[int, int]:
    """Return the two factors of `size` nearest to each other, the smaller first."""
    small = next(number for number in range(math.isqrt(size), 0, -1) if size % number == 0)
    return small, size // small


def _possible(ranks: list[int], sizes: list[int]) -> tuple[int, ...]:
    """Lower each rank to what its neighbours and the mode between them allow."""
    for position in range(len(ranks)):
        ranks[position] = min(ranks[position], (ranks[position - 1] if position else 1) * sizes[position])
    for position in reversed(range(len(ranks))):
        after = ranks[position + 1] if position + 1 < len(ranks) else 1
        ranks[position] = min(ranks[position], after * sizes[position + 1])
    return tuple(ranks)


def _pad(tensor: Tensor, width: int, dim: int = 2) -> Tensor:
    """Append zeros along `dim` until it is `width` long."""
    missing = width - tensor.shape[dim]
    if missing <= 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def _linear_parts(layer: Layer, rank: int) -> tuple[Layer, ...]:
    """Return the TT-matrix; a channel-wise scale comes last, because a bias must differ in all t1 t2 outputs."""
    (t1, t2), (s1, s2) = (divisors(size) for size in layer.weight)
    name, outputs = layer.name, layer.weight[0]
    split = Layer(name, "Unflatten", (s1, s2), layer.inputs)
    first = Layer(name, "Conv1d", (t1 * rank, s1, 1), split.outputs, (1,), (0,), (), (1,))
    widen = Layer(name, "Unflatten", (t1, rank), first.outputs)
    join = Layer(name, "Flatten", (), widen.outputs, start_dim=2)
    second = Layer(name, "Linear", (t2, rank * s2), join.outputs)
    flat = Layer(name, "Flatten", (), second.outputs)
    column = Layer(name, "Unflatten", (outputs, 1), flat.outputs)
    scale = replace(first, weight=(outputs, 1, 1), inputs=column.outputs, groups=outputs, bias=layer.bias)
    return split, first, widen, join, second, flat, column, scale, Layer(name, "Flatten", (), scale.outputs)


def _linear_factors(weight: Tensor, rank: int) -> tuple[Tensor, ...]:
    (t1, t2), (s1, s2) = (divisors(size) for size in weight.shape[1:])
    matrix = weight.reshape(t1, t2, s1, s2).permute(0, 2, 1, 3).reshape(t1 * s1, t2 * s2)
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    first = (u[:, :rank] * values[:rank].sqrt()).reshape(t1, s1, rank).transpose(1, 2)
    second = (values[:rank, None].sqrt() * vt[:rank]).reshape(rank, t2, s2).transpose(0, 1)
    return first.reshape(1, t1 * rank, s1, 1), second.reshape(1, t2, -1), weight.new_ones(weight.shape[1], 1, 1, 1)
