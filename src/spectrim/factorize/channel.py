"""ChannelSVD: a kernel with r outputs, then a 1 x 1 convolution; the SVD of the lowered kernel T x (S * kernel).

With moments it works in response space and needs only T x T statistics (Zhang et al. 2016): with U the leading
eigenvectors of G^1/2 Cy G^1/2, the projection M = G^-1/2 U U^T G^1/2 gives the best W_r = M W in E || G^1/2 (y - y_r) ||^2, and
half the dropped eigenvalues are the predicted loss in nats. Without moments G and C are the identity: the plain SVD.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from spectrim.core.factorization import Factorization, Fit, Moments, Rank
from spectrim.core.layer import Layer
from spectrim.factorize.algebra import eye_like, symmetric_roots
from spectrim.factorize.parts import pointwise, spatial


@dataclass(frozen=True)
class ChannelSVD(Factorization):
    """Full kernel S -> r, then 1 x 1 r -> T; for a linear layer two linear layers.

    Reference:
        Zhang, Zou, He, Sun: Accelerating very deep convolutional networks (2016), section 3.
    """

    title: ClassVar[str] = "ChannelSVD"
    reference: ClassVar[str] = "Zhang et al. 2016, section 3"
    response_only: ClassVar[bool] = True

    def fits(self, layer: Layer) -> Fit:
        """Every weighted layer fits, except where one row or column leaves nothing to cut."""
        return Fit() if min(layer.matrix) > 1 else Fit(f"its lowered matrix per group is {layer.matrix}: rank 1 already")

    def full_rank(self, layer: Layer) -> int:
        """Return the smaller side of the lowered matrix of one group."""
        return min(layer.matrix)

    def candidates(self, layer: Layer) -> list[Rank]:
        """Return every rank."""
        return list(range(1, self.full_rank(layer) + 1)) if self.fits(layer) else []

    def parts(self, layer: Layer, rank: Rank) -> tuple[Layer, ...]:
        """Return the kernel and the 1 x 1 convolution."""
        self.check(layer, rank)
        assert isinstance(rank, int)
        outputs, inputs = layer.channels
        width = rank * layer.groups
        if layer.kind == "Linear":
            first = pointwise(layer, inputs, width, None)
        else:
            first = spatial(layer, (inputs, width), range(len(layer.kernel)), None)
        return first, replace(pointwise(layer, width, outputs, first), bias=layer.bias)

    def factors(self, weight: Tensor, rank: Rank, moments: Moments | None = None) -> tuple[Tensor, ...]:
        """Return (g, r, S, *kernel) and (g, T, r, ones)."""
        assert isinstance(rank, int)
        return split(weight, rank, response_of(weight, moments))

    def merge(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the product."""
        first, second = factors
        product: Tensor = (second.flatten(2) @ first.flatten(2)).unflatten(2, first.shape[2:])
        return product

    def kernels(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> Iterator[Tensor]:
        """Return every rank's kernel, from one eigenproblem."""
        return products(weight, ranks, response_of(weight, moments))

    def losses(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> list[float]:
        """Return half the dropped eigenvalues, or the dropped share of the energy without moments."""
        return dropped(response_of(weight, moments), ranks, weighted=moments is not None)


Response = tuple[Tensor, Tensor, Tensor, Tensor]


def split(weight: Tensor, rank: int, response: Response) -> tuple[Tensor, Tensor]:
    """Return the two factors of the best kernel of this rank, from what `response_of` found."""
    vectors, _, root, inverse = response
    vectors = vectors[:, :, :rank]  # (g, T, r)
    first = vectors.mT @ root @ weight.flatten(2)
    ones = (1,) * (weight.ndim - 3)
    return first.reshape(*first.shape[:2], *weight.shape[2:]), (inverse @ vectors).reshape(*vectors.shape, *ones)


def products(weight: Tensor, ranks: Sequence[Rank], response: Response) -> Iterator[Tensor]:
    """Yield the best kernel of each rank, from what `response_of` found."""
    vectors, _, root, inverse = response
    rows, columns = vectors.mT @ root @ weight.flatten(2), inverse @ vectors
    for rank in ranks:
        assert isinstance(rank, int)
        yield (columns[:, :, :rank] @ rows[:, :rank]).reshape(weight.shape)


def dropped(response: Response, ranks: Sequence[Rank], *, weighted: bool) -> list[float]:
    """Return half of the eigenvalues that each rank drops, or their share of all of them where there are no moments."""
    values = response[1]
    scale = 0.5 if weighted else 1 / float(values.sum().clamp_min(torch.finfo(values.dtype).tiny))
    lost = (values.sum(1, keepdim=True) - values.cumsum(1)).clamp_min(0).sum(0) * scale
    return [float(lost[rank - 1]) for rank in ranks if isinstance(rank, int)]


def response_of(weight: Tensor, moments: Moments | None) -> Response:
    """Return eigenvectors (g, T, q) and values (g, q) of G^1/2 Cy G^1/2, largest first, G^1/2 and G^-1/2; q = min(T, n)."""
    flat = weight.flatten(2)
    g, t, n = flat.shape
    if moments is None:
        root = inverse = eye_like(t, weight).expand(g, t, t)
        response = flat @ flat.mT
    else:
        root, inverse = symmetric_roots(moments.gradient)
        response = moments.response
    whitened = root @ response @ root
    if n >= t:
        values, vectors = torch.linalg.eigh((whitened + whitened.mT) / 2)
        return vectors.flip(-1), values.flip(-1).clamp_min(0), root, inverse
    span = torch.linalg.qr(root @ flat).Q  # outside the span of the columns there is only noise
    values, inner = torch.linalg.eigh(span.mT @ whitened @ span)
    return (span @ inner).flip(-1), values.flip(-1).clamp_min(0), root, inverse
