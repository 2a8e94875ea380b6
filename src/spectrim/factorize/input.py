"""InputSVD: a 1 x 1 convolution that shrinks the input, then the kernel; the SVD of S x (T * kernel), in the response norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from spectrim.core.factorization import Factorization, Fit, Moments, Rank
from spectrim.core.layer import Layer
from spectrim.factorize.nested import Nested, nested, nested_losses
from spectrim.factorize.parts import pointwise, spatial


@dataclass(frozen=True)
class InputSVD(Factorization):
    """1 x 1 convolution S -> r, then the full kernel r -> T.

    Reference:
        Denton, Zaremba, Bruna, LeCun, Fergus: Exploiting linear structure within convolutional networks for efficient
        evaluation (2014), section 3.3.
    """

    title: ClassVar[str] = "InputSVD"
    reference: ClassVar[str] = "Denton et al. 2014, section 3.3"

    def fits(self, layer: Layer) -> Fit:
        """Need several input channels per group and a kernel; for a plain matrix it is ChannelSVD."""
        if set(layer.kernel) <= {1}:
            return Fit("it has no spatial kernel, so ChannelSVD is the same factorization")
        return Fit() if layer.channels[1] // layer.groups > 1 else Fit("it has one input channel per group")

    def full_rank(self, layer: Layer) -> int:
        """Return the smaller side of S x (T * kernel) of one group."""
        outputs, inputs = (channels // layer.groups for channels in layer.channels)
        return min(inputs, outputs * (layer.matrix[1] // inputs))

    def candidates(self, layer: Layer) -> list[Rank]:
        """Return every rank."""
        return list(range(1, self.full_rank(layer) + 1)) if self.fits(layer) else []

    def parts(self, layer: Layer, rank: Rank) -> tuple[Layer, ...]:
        """Return the 1 x 1 convolution and the kernel."""
        self.check(layer, rank)
        assert isinstance(rank, int)
        outputs, inputs = layer.channels
        first = pointwise(layer, inputs, rank * layer.groups, None)
        second = spatial(layer, (rank * layer.groups, outputs), range(len(layer.kernel)), first)
        return first, replace(second, bias=layer.bias)

    def factors(self, weight: Tensor, rank: Rank, moments: Moments | None = None) -> tuple[Tensor, ...]:
        """Return (g, r, S, ones) and (g, T, r, *kernel)."""
        assert isinstance(rank, int)
        return self._cut(nested(weight.flatten(3), rank, moments), rank, weight)

    def kernels(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> Iterator[Tensor]:
        """Yield every rank's kernel from one Cholesky factorization."""
        numbers = [rank for rank in ranks if isinstance(rank, int)]
        solution = nested(weight.flatten(3), max(numbers), moments)
        for rank in numbers:
            yield self.merge(self._cut(solution, rank, weight))

    @staticmethod
    def _cut(solution: Nested, rank: int, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the factors of one rank."""
        g, t, s = weight.shape[:3]
        first = solution.basis[:, :, :rank].mT.reshape(g, rank, s, *(1,) * (weight.ndim - 3))
        return first, solution.second(rank).reshape(g, t, rank, *weight.shape[3:])

    def merge(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the product."""
        first, second = factors
        product = first.flatten(2).mT[:, None] @ second.flatten(3)  # (g, T, S, k)
        merged: Tensor = product.unflatten(3, second.shape[3:])
        return merged

    def losses(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> list[float]:
        """Return the loss of every rank from one Cholesky factorization."""
        numbers = [rank for rank in ranks if isinstance(rank, int)]
        return nested_losses(nested(weight.flatten(3), max(numbers), moments), numbers, moments)
