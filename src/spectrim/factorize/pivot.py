"""PivotSVD: ChannelSVD's kernel in pivot form, where r of the outputs are what the first part computes.

A kernel of rank r is B A with B (T, r) and A (r, n). With P some r independent rows of B, B A = (B B_P^-1) (B_P A), and the
rows P of B B_P^-1 are unit vectors: those outputs are passed on as they are, only the T - r others are computed. So it costs
r n + (T - r) r in place of r n + T r, and every rank below the smaller side of the lowered kernel pays (in MACs
not always after a transposed convolution, whose output has more positions than its input).

Which rows: those of about the largest volume. Rows of a triangular factorization are exchanged while a coefficient is above
`LARGEST`; each exchange multiplies the volume by it, so there is an end (Goreinov et al. 2010, "How to find a good submatrix").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from spectrim.core.factorization import Factorization, Fit, Moments, Rank
from spectrim.core.layer import Layer
from spectrim.factorize.algebra import eye_like
from spectrim.factorize.channel import ChannelSVD, dropped, products, response_of, split

CHANNEL = ChannelSVD()
LARGEST = 1.1  # coefficient that is left as it is
EXCHANGES = 8  # for each row, at most


@dataclass(frozen=True)
class PivotSVD(Factorization):
    """Full kernel S -> r, then r outputs as they are beside a 1 x 1 r -> T - r; for a linear layer two linear layers.

    Its kernels and harms are ChannelSVD's. At rank T nothing is left for the second part, and the layer stays what it is.

    Reference:
        Zhao et al.: Pivoting factorization (ICML 2025); the kernel is ChannelSVD's.
    """

    title: ClassVar[str] = "PivotSVD"
    reference: ClassVar[str] = "Zhao et al. 2025 (ICML)"
    response_only: ClassVar[bool] = True

    def fits(self, layer: Layer) -> Fit:
        """Every weighted layer fits, except where one row or column leaves nothing to cut."""
        return CHANNEL.fits(layer)

    def full_rank(self, layer: Layer) -> int:
        """Return the smaller side of the lowered matrix of one group."""
        return CHANNEL.full_rank(layer)

    def candidates(self, layer: Layer) -> list[Rank]:
        """Return every rank."""
        return CHANNEL.candidates(layer)

    def parts(self, layer: Layer, rank: Rank) -> tuple[Layer, ...]:
        """Return the kernel, and what passes its outputs on and computes the others; at rank T the layer itself."""
        self.check(layer, rank)
        if rank == layer.matrix[0]:
            return (layer,)
        first, last = CHANNEL.parts(layer, rank)
        return first, replace(last, kind="Pivot")

    def factors(self, weight: Tensor, rank: Rank, moments: Moments | None = None) -> tuple[Tensor, ...]:
        """Return (g, r, S, *kernel) and (g, T, r, ones), r of whose rows are unit vectors; at rank T the kernel itself."""
        assert isinstance(rank, int)
        if rank == weight.shape[1]:
            return (weight.clone(),)
        first, last = split(weight, rank, response_of(weight, moments))
        rows, coefficients = pivoted(last.flatten(2))
        return (
            (picked(last.flatten(2), rows) @ first.flatten(2)).reshape(first.shape),
            coefficients.reshape(last.shape),
        )

    def merge(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the product."""
        return CHANNEL.merge(factors) if len(factors) > 1 else factors[0]

    def kernels(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> Iterator[Tensor]:
        """Return every rank's kernel, from one eigenproblem."""
        return products(weight, ranks, response_of(weight, moments))

    def losses(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> list[float]:
        """Return half the dropped eigenvalues, or the dropped share of the energy without moments."""
        return dropped(response_of(weight, moments), ranks, weighted=moments is not None)


def pivoted(basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows P of B (g, T, r), ascending, (g, r), and B B_P^-1 (g, T, r), in which they are exactly unit vectors."""
    rank = basis.shape[2]
    rows = torch.linalg.lu(basis).P.argmax(1)[:, :rank].clone()
    for group, matrix in enumerate(basis):
        _exchange(matrix, rows[group])
    rows = rows.sort(1).values
    coefficients = torch.linalg.solve(picked(basis, rows), basis, left=False)
    return rows, coefficients.scatter(1, rows[..., None].expand(-1, -1, rank), eye_like(rank, basis).expand(len(basis), -1, -1))


def picked(basis: Tensor, rows: Tensor) -> Tensor:
    """Return these rows (g, r) of B (g, T, r), (g, r, r)."""
    return basis.gather(1, rows[..., None].expand(-1, -1, basis.shape[2]))


def _exchange(basis: Tensor, rows: Tensor) -> None:
    """Exchange rows (r,) of one B (T, r) for others, in place, until no coefficient of B B_P^-1 is above `LARGEST`."""
    coefficients = torch.linalg.solve(basis[rows], basis, left=False)
    for _ in range(EXCHANGES * len(rows)):
        row, column = divmod(int(coefficients.abs().argmax()), len(rows))
        pivot = coefficients[row, column].clone()
        if abs(pivot) <= LARGEST:
            return
        change = coefficients[row].clone()
        change[column] -= 1
        coefficients -= torch.outer(coefficients[:, column].clone(), change / pivot)
        rows[column] = row
