"""The linear algebra that decompositions share: canonical weights, roots, ridges, harms, regressions.

`spectrim.core.factorization` says what a canonical weight is and in which norm harms are measured.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from spectrim.core.factorization import Moments
from spectrim.core.layer import Layer

RIDGE = 1e-3  # added to C, relative to its mean diagonal, so that every Gram matrix of features can be inverted
JITTER = 1e-13  # added to the diagonal of a Gram matrix of features, relative to it: some may be zero or repeat others
FLOOR = 1e-6  # smallest eigenvalue kept, relative to the mean one, when a covariance is inverted
_roots = WeakTensorKeyDictionary()  # of matrices that are still in memory, by identity


def canonical_shape(layer: Layer) -> tuple[int, ...]:
    """Return the shape (g, T, S, *kernel) of a layer's canonical weight, T and S being channels of one group."""
    outputs, inputs = layer.convolution.channels
    return layer.groups, outputs // layer.groups, inputs // layer.groups, *layer.convolution.kernel


def to_canonical(layer: Layer, weight: Tensor) -> Tensor:
    """Return the weight of a module as (g, T, S, *kernel)."""
    g, weight = layer.groups, weight.reshape(layer.convolution.weight)
    if layer.transposed:  # (S, T / g, *kernel)
        return weight.reshape(g, -1, *weight.shape[1:]).transpose(1, 2).flip(tuple(range(3, weight.ndim + 1)))
    return weight.reshape(g, -1, *weight.shape[1:])


def from_canonical(layer: Layer, weight: Tensor) -> Tensor:
    """Return a canonical weight (g, T, S, *kernel) as the module stores it."""
    if layer.transposed:
        weight = weight.flip(tuple(range(3, weight.ndim))).transpose(1, 2)
    return weight.reshape(layer.weight)


def symmetric_roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square root and the inverse square root of positive semidefinite matrices (..., m, m).

    They are remembered while the matrix is in memory, so every method and every fit of a layer shares those of its G.
    """
    found: tuple[Tensor, Tensor] | None = _roots.get(matrix)
    if found is None:
        values, vectors = torch.linalg.eigh(matrix)
        floor = FLOOR * values.mean(-1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
        root = torch.maximum(values, floor).sqrt()
        found = (vectors * root[..., None, :]) @ vectors.mT, (vectors / root[..., None, :]) @ vectors.mT
        _roots[matrix] = found
    return found


def ridge(covariance: Tensor, share: float = RIDGE) -> Tensor:
    """Return what to add to the diagonal of C (g, n, n) to make it invertible, (g, 1, 1), also for groups that see nothing.

    Args:
        covariance: C.
        share: Of the mean diagonal.
    """
    mean = covariance.diagonal(dim1=1, dim2=2).mean(1)
    largest = mean.max()
    return share * mean.clamp_min(float(1e-6 * largest) if largest > 0 else 1.0)[:, None, None]


def eye_like(size: int, tensor: Tensor) -> Tensor:
    """Return an identity matrix (size, size) where the tensor is and in its dtype, whatever torch's default device."""
    return torch.eye(size, dtype=tensor.dtype, device=tensor.device)


def map_between(weight: Tensor, kernel: Tensor) -> Tensor:
    """Return the map N (g, T, T) of outputs with N W = K, for a kernel K whose rows lie in those of W, both (g, T, n)."""
    gram = weight @ weight.mT
    damped = gram + 1e-10 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * eye_like(gram.shape[1], gram)
    found: Tensor = torch.linalg.solve(damped, weight @ kernel.mT).mT
    return found


def output_metric(weight: Tensor, moments: Moments | None) -> Tensor:
    """Return G (g, T, T), or the identity without moments."""
    if moments is not None:
        return moments.gradient
    return eye_like(weight.shape[1], weight).expand(len(weight), -1, -1)


def channel_metric(weight: Tensor, moments: Moments | None) -> Tensor:
    """Return the input covariance averaged over the taps, (g, S, S); the identity where there is none."""
    g, s = len(weight), weight.shape[2]
    if moments is None or moments.covariance is None:
        return eye_like(s, weight).expand(g, s, s)
    taps = weight[0, 0, 0].numel()
    split = (moments.covariance + ridge(moments.covariance) * eye_like(s * taps, weight)).reshape(g, s, taps, s, taps)
    return torch.einsum("gmkpk->gmp", split) / taps


def harm(weight: Tensor, merged: Tensor, moments: Moments | None) -> float:
    """Return the predicted harm of using `merged` (g, T, S, *kernel) in place of `weight`, which decompositions compete in.

    With D = weight - merged, lowered to (T, n) for each group: 1/2 tr(G D C D^T), summed over the groups, in nats of loss. G is
    `moments.gradient` and C `moments.covariance`. Without moments |D|^2 / |weight|^2.

    Args:
        weight: The kernel, (g, T, S, *kernel).
        merged: What takes its place, of the same shape.
        moments: Norm; None for the weight's own.

    Raises:
        ValueError: If the shapes differ, or the moments hold no covariance, which was too large to keep.
    """
    if merged.shape != weight.shape:
        raise ValueError(f"the kernel has shape {tuple(weight.shape)}, what merge() made in its place {tuple(merged.shape)}")
    change = (weight - merged).flatten(2)  # (g, T, n)
    if moments is None:
        return float(change.square().sum() / weight.square().sum().clamp_min(torch.finfo(weight.dtype).tiny))
    if moments.covariance is None:
        raise ValueError("this layer's input covariance was not kept; only response-space methods apply")
    return float(0.5 * torch.einsum("gtu,gun,gnm,gtm->", moments.gradient, change, moments.covariance, change))


def regression_slope(weight: Tensor, moments: Moments | None) -> Tensor | None:
    """Return G W C (g, T, n), which `regressed_harm` needs for every rank; None where there is no C."""
    if moments is None or moments.covariance is None:
        return None
    return moments.gradient @ weight.flatten(2) @ moments.covariance


def regressed_harm(weight: Tensor, merged: Tensor, moments: Moments | None, slope: Tensor | None) -> float:
    """Return the harm of a merged kernel M whose last factor is the regression, so that M C M^T = M C W^T.

    Args:
        weight: The kernel W, (g, T, S, *kernel).
        merged: M, of the same shape.
        moments: Norm.
        slope: From `regression_slope`.
    """
    if slope is None:
        return harm(weight, merged, moments)
    return max(0.0, 0.5 * float(((weight - merged).flatten(2) * slope).sum()))


def regress_last(weight: Tensor, projection: Tensor, moments: Moments | None) -> Tensor:
    """Return the best last factor given everything before it, by regression in the input norm.

    Solves min over B of E || W x - B P^T x ||^2: B = W C P (P^T C P)^-1, independent of G.

    Args:
        weight: The kernel, (g, T, n).
        projection: P, what the earlier factors compute from the lowered input, (g, n, m).
        moments: Gives C; without it C is the identity.

    Returns:
        B, (g, T, m).
    """
    covariance = None if moments is None else moments.covariance
    weighted = projection
    if covariance is not None:  # C P, with the ridge inside C so that an exact factorization stays exact
        weighted = covariance @ projection + ridge(covariance) * projection
    gram = projection.mT @ weighted
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    smallest = 1e-20 * diagonal.amax(-1, keepdim=True) + torch.finfo(gram.dtype).tiny
    gram = gram + torch.diag_embed(JITTER * diagonal.clamp_min(0) + smallest)
    solved: Tensor = torch.linalg.solve(gram, (weight @ weighted).mT)
    return solved.mT
