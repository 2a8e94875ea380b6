"""A first factor for every rank at once, and the rest by regression: what SpatialSVD, InputSVD and Tucker2 share.

The lowered input splits into (m, k): the first factor A mixes m (its leading r columns serve rank r), the taps k stay. A is
the SVD of Cm^1/2 . W . (Ck x G)^1/2, with Cm the tap-averaged covariance over m and Ck the correlation of the taps. Given
A, the features are P^T x with P = A x I_k, and the best second factor is the regression B = W C P (P^T C P)^-1.
Features are ordered by rank, so the leading block of one Cholesky factor serves every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.core.factorization import Moments
from spectrim.factorize.algebra import eye_like, ridge, symmetric_roots


@dataclass(frozen=True)
class Nested:
    """First factors and regressions of every rank up to R, per group.

    Attributes:
        basis: A, (g, m, R).
        lower: Cholesky factor L of the features' Gram matrix, (g, R * k, R * k).
        explained: Z = L^-1 P^T C W^T, (g, R * k, T); its leading r * k rows serve rank r.
        total: W C W^T, (g, T, T).
        taps: k.
    """

    basis: Tensor
    lower: Tensor
    explained: Tensor
    total: Tensor
    taps: int

    def second(self, rank: int) -> Tensor:
        """Return the regression B on the features of this rank, (g, T, rank, k)."""
        rows = rank * self.taps
        lower, explained = self.lower[:, :rows, :rows], self.explained[:, :rows]
        b: Tensor = torch.linalg.solve_triangular(lower.mT, explained, upper=True).mT  # (g, T, rank * k)
        split: Tensor = b.unflatten(2, (rank, self.taps))
        return split


def nested(weight: Tensor, rank: int, moments: Moments | None) -> Nested:
    """Solve for every rank up to `rank`.

    Args:
        weight: The kernel with its input split, (g, T, m, k).
        rank: R, the largest rank wanted.
        moments: Norm; the covariance's n must be ordered (m, k). None means identity matrices.
    """
    g, _, m, k = weight.shape
    flat = weight.flatten(2)
    if moments is None or moments.covariance is None:
        a = left_vectors(weight.permute(0, 2, 3, 1).flatten(2))[:, :, :rank]
        explained = torch.einsum("gmr,gtmk->grkt", a, weight).flatten(1, 2)
        eye = eye_like(rank * k, weight).expand(g, -1, -1)
        return Nested(a, eye, explained, flat @ flat.mT, k)
    covariance = moments.covariance + ridge(moments.covariance) * eye_like(m * k, weight)
    split = covariance.reshape(g, m, k, m, k)
    rows, inverse = symmetric_roots(torch.einsum("gmkpk->gmp", split) / k)
    correlation = torch.einsum("gmkml->gkl", split)
    taps, _ = symmetric_roots(correlation / correlation.diagonal(dim1=1, dim2=2).mean(1)[:, None, None])
    root, _ = symmetric_roots(moments.gradient)
    target = torch.einsum("gpm,gtmk,gkl,gtu->gplu", rows, weight, taps, root)
    a = inverse @ left_vectors(target.flatten(2))[:, :, :rank]
    weighted = torch.einsum("gnml,gmr->gnrl", covariance.reshape(g, m * k, m, k), a).flatten(2)  # C P, (g, n, R * k)
    gram = torch.einsum("gmr,gmkf->grkf", a, weighted.reshape(g, m, k, rank * k)).flatten(1, 2)
    lower = torch.linalg.cholesky((gram + gram.mT) / 2)
    explained = torch.linalg.solve_triangular(lower, (flat @ weighted).mT, upper=False)
    return Nested(a, lower, explained, flat @ covariance @ flat.mT, k)


def left_vectors(matrix: Tensor) -> Tensor:
    """Return the left singular vectors (..., m, min(m, c)), largest first; by the cheaper road where it is as exact."""
    if matrix.shape[-2] <= matrix.shape[-1]:
        vectors: Tensor = torch.linalg.eigh(matrix @ matrix.mT).eigenvectors.flip(-1)
    else:
        vectors = torch.linalg.svd(matrix, full_matrices=False).U
    return vectors


def nested_losses(solution: Nested, ranks: Sequence[int], moments: Moments | None) -> list[float]:
    """Return the harm that regression on the leading features leaves, for each rank."""
    explained = solution.explained  # (g, R * k, T)
    if moments is None:
        captured, total = explained.square().sum(2), solution.total.diagonal(dim1=1, dim2=2).sum()
        scale = 1 / float(total.clamp_min(torch.finfo(total.dtype).tiny))
    else:
        captured = torch.einsum("gft,gtu,gfu->gf", explained, moments.gradient, explained)
        total, scale = (moments.gradient * solution.total).sum(), 0.5
    kept = captured.sum(0).cumsum(0)
    return [max(0.0, float(total - kept[rank * solution.taps - 1]) * scale) for rank in ranks]
