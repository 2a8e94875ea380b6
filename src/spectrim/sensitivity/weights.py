"""Scores that look at weights only, as published rank selections use them: energy, operator norm, VBMF's rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spectrim.core.factorization import Factorization, Rank, as_tuple
from spectrim.core.layer import Layer


def energy(method: Factorization, layer: Layer, weight: Tensor, ranks: Sequence[Rank]) -> list[float]:
    """Return the relative squared error of the weight at each rank."""
    return method.losses(weight, ranks)


def spectral(method: Factorization, layer: Layer, weight: Tensor, ranks: Sequence[Rank]) -> list[float]:
    """Return the relative error of the lowered kernel in operator norm at each rank, the largest of the groups."""
    whole = torch.linalg.matrix_norm(weight.flatten(2), 2)
    errors = []
    for rank in ranks:
        change = weight - method.merge(method.factors(weight, rank))
        norm = torch.linalg.matrix_norm(change.flatten(2), 2) / whole.clamp_min(torch.finfo(weight.dtype).tiny)
        errors.append(float(norm.max()))
    return errors


def vbmf(method: Factorization, layer: Layer, weight: Tensor, ranks: Sequence[Rank]) -> list[float]:
    """Return the logarithm of VBMF's rank over each rank, both as shares of the full rank."""
    estimates = [vbmf_rank(matrix.cpu().numpy()) for matrix in weight.flatten(2)]
    share = max(1.0, float(np.mean(estimates))) / min(layer.matrix)
    full = as_tuple(method.full_rank(layer.convolution))
    return [
        math.log(share / np.mean([number / limit for number, limit in zip(as_tuple(rank), full, strict=True)]))
        for rank in ranks
    ]


def vbmf_rank(matrix: np.ndarray) -> int:
    """Return the rank that empirical VBMF estimates, with the noise variance estimated too.

    Args:
        matrix: Array (L, M).

    Reference:
        Nakajima, Sugiyama, Babacan, Tomioka (2013), theorem 2 and corollary 1.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    rows, columns = sorted(matrix.shape)
    values = np.linalg.svd(matrix, compute_uv=False)
    alpha = rows / columns
    tau = 2.5129 * math.sqrt(alpha)
    threshold = (1 + tau) * (1 + alpha / tau)
    squares = np.maximum(values**2, 1e-300)
    inner = min(math.ceil(rows / (1 + alpha)) - 1, rows) - 1
    upper = squares.sum() / (rows * columns)
    lower = max(squares[min(inner + 1, rows - 1)] / (columns * threshold), squares[min(inner + 1, rows - 1) :].mean() / columns)
    if not 0 < lower < upper:
        variance = upper
    else:
        found = minimize_scalar(_free_energy, args=(rows, columns, squares, threshold), bounds=(lower, upper), method="bounded")
        variance = float(found.x)
    return int((squares > columns * variance * threshold).sum())


def _free_energy(variance: float, rows: int, columns: int, squares: np.ndarray, threshold: float) -> float:
    """Return the variational free energy at a noise variance, up to a constant."""
    alpha = rows / columns
    x = squares / (columns * variance)
    signal, noise = x[x > threshold], x[x <= threshold]
    tau = 0.5 * (signal - (1 + alpha) + np.sqrt(np.maximum((signal - (1 + alpha)) ** 2 - 4 * alpha, 0)))
    total = np.sum(noise - np.log(noise)) + np.sum(signal - tau)
    total += np.sum(np.log((tau + 1) / signal)) + alpha * np.sum(np.log(tau / alpha + 1))
    return float(total)
