"""TiledSVD: the lowered kernel T x (S * kernel) cut into p x q tiles, one SVD for each (Lee et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from spectrim.core.factorization import Factorization, Fit, Moments, Rank
from spectrim.core.layer import Layer
from spectrim.factorize.algebra import eye_like, harm, regress_last, ridge, symmetric_roots
from spectrim.factorize.parts import grid, pointwise, spatial

STEPS = 24


@dataclass(frozen=True)
class TiledSVD(Factorization):
    """Kernel with groups=q to p * q * r channels, channel shuffle, 1 x 1 convolution with groups=p.

    Every tile has its own SVD of rank r; with moments in the norm of its own outputs and inputs, and the second factor is
    then the regression in the input norm.

    Args:
        rows: p, tiles along the output channels.
        columns: q, tiles along the input channels.

    Raises:
        ValueError: If a number of tiles is below 1.

    Reference:
        Lee, Kwon, Kim, Wei: Learning low-rank approximation for CNNs (arXiv 1905.10145), section 3.
    """

    rows: int = 2
    columns: int = 2
    title: ClassVar[str] = "TiledSVD"
    reference: ClassVar[str] = "Lee et al. 2019 (arXiv 1905.10145), section 3"

    def __post_init__(self) -> None:
        """Check the numbers of tiles."""
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"TiledSVD was given rows={self.rows!r}, columns={self.columns!r}; both must be at least 1")

    def fits(self, layer: Layer) -> Fit:
        """Need an ungrouped convolution whose channels the tiles divide."""
        if layer.kind == "Linear":
            return Fit("a linear layer has no grouped stock counterpart")
        if layer.groups != 1:
            return Fit("it is grouped already")
        outputs, inputs = layer.channels
        if outputs % self.rows or inputs % self.columns:
            return Fit(f"{self.rows} x {self.columns} tiles do not divide its {outputs} x {inputs} channels")
        return Fit()

    def full_rank(self, layer: Layer) -> int:
        """Return the smaller side of a tile."""
        rows, columns = layer.matrix
        return min(rows // self.rows, columns // self.columns)

    def candidates(self, layer: Layer) -> list[Rank]:
        """Return a geometric grid."""
        return list(grid(self.full_rank(layer), STEPS)) if self.fits(layer) else []

    def parts(self, layer: Layer, rank: Rank) -> tuple[Layer, ...]:
        """Return the grouped kernel, the shuffle (where there is something to shuffle) and the grouped 1 x 1."""
        self.check(layer, rank)
        assert isinstance(rank, int)
        outputs, inputs = layer.channels
        width = self.rows * self.columns * rank
        first = spatial(replace(layer, groups=self.columns), (inputs, width), range(len(layer.kernel)), None)
        shuffle = Layer(layer.name, "ChannelShuffle", (), first.outputs, groups=self.columns)
        last = pointwise(replace(layer, groups=self.rows), width, outputs, shuffle)
        return first, shuffle, replace(last, bias=layer.bias)

    def factors(self, weight: Tensor, rank: Rank, moments: Moments | None = None) -> tuple[Tensor, ...]:
        """Return (q, p * r, S / q, *kernel) and (p, T / p, r * q, ones)."""
        assert isinstance(rank, int)
        p, q = self.rows, self.columns
        _, t, s = weight.shape[:3]
        tiles = weight.reshape(p, t // p, q, -1).transpose(1, 2)  # (p, q, T / p, n / q)
        outputs, inputs = self._metrics(weight, moments)
        left, (right, inverse) = symmetric_roots(outputs)[0], symmetric_roots(inputs)
        _, _, vt = torch.linalg.svd(left[:, None] @ tiles @ right, full_matrices=False)
        rows = vt[:, :, :rank] @ inverse  # (p, q, r, n / q)
        projection = weight.new_zeros(p, q, rows.shape[3], rank, q)
        for column in range(q):
            projection[:, column, :, :, column] = rows[:, column].mT
        if moments is not None and moments.covariance is not None:
            moments = replace(moments, covariance=moments.covariance.expand(p, -1, -1))
        last = regress_last(weight.reshape(p, t // p, -1), projection.reshape(p, -1, rank * q), moments)
        first = rows.transpose(0, 1).reshape(q, p * rank, s // q, *weight.shape[3:])
        return first, last.reshape(p, t // p, rank * q, *(1,) * (weight.ndim - 3))

    def _metrics(self, weight: Tensor, moments: Moments | None) -> tuple[Tensor, Tensor]:
        """Return G of each row tile (p, T / p, T / p) and C of each column tile (q, n / q, n / q)."""
        p, q = self.rows, self.columns
        t, n = weight.shape[1], weight[0, 0].numel()
        if moments is None or moments.covariance is None:
            return eye_like(t // p, weight).expand(p, -1, -1), eye_like(n // q, weight).expand(q, -1, -1)
        gradient = moments.gradient.reshape(p, t // p, p, t // p)
        covariance = moments.covariance + ridge(moments.covariance) * eye_like(n, weight)
        split = covariance.reshape(q, n // q, q, n // q)
        return torch.stack([gradient[i, :, i] for i in range(p)]), torch.stack([split[i, :, i] for i in range(q)])

    def merge(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the tiles side by side."""
        first, last = factors
        p, q = self.rows, self.columns
        rows = first.reshape(q, p, -1, first[0, 0].numel())  # (q, p, r, n / q)
        columns = last.flatten(2).reshape(p, last.shape[1], -1, q)  # (p, T / p, r, q)
        product = torch.einsum("ptrq,qprn->ptqn", columns, rows)
        return product.reshape(1, p * last.shape[1], q * first.shape[2], *first.shape[3:])

    def losses(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> list[float]:
        """Return the harm of each rank's own fit."""
        return [harm(weight, self.merge(self.factors(weight, rank, moments)), moments) for rank in ranks]
