"""PivotSVD is ChannelSVD with fewer coefficients: the same kernels and harms, for less at every rank."""

import pytest
import torch
from torch import nn

import spectrim as st
from nets import layer_and_input
from spectrim.factorize.pivot import LARGEST, picked, pivoted
from spectrim.network.build import working_weight
from spectrim.sensitivity.moments import gather_moments
from tables import LAYERS, fitting

PIVOT, CHANNEL = st.PivotSVD(), st.ChannelSVD()
GEOMETRIES = [name for _, name in fitting((PIVOT,))]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_rank_below_the_full_one_pays(geometry):
    layer = LAYERS[geometry]
    full = PIVOT.full_rank(layer)
    paying = PIVOT.ranks(layer)
    assert paying == list(range(1, len(paying) + 1))
    assert len(paying) == full - 1 or layer.transposed  # whose second part has more positions than its kernel
    assert all(PIVOT.cost(layer, rank).params < layer.cost.params for rank in range(1, full))
    assert set(CHANNEL.ranks(layer)) <= set(PIVOT.ranks(layer))
    for rank in range(1, full + 1):
        less, more = PIVOT.cost(layer, rank), CHANNEL.cost(layer, rank)
        assert more.params - less.params == layer.groups * rank**2
        assert less.macs < more.macs


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_kernels_and_harms_are_those_of_channel_svd(geometry, weighted):
    module, x = layer_and_input(geometry, 24)
    network = nn.Sequential(module)
    (layer,) = st.find_layers(network, x)
    weight = working_weight(layer, module)
    moments = gather_moments(network, [layer], [x])[layer.name] if weighted else None
    ranks = PIVOT.candidates(layer.convolution)
    assert PIVOT.losses(weight, ranks, moments) == CHANNEL.losses(weight, ranks, moments)
    for rank in ranks:
        factors = PIVOT.factors(weight, rank, moments)
        wanted = CHANNEL.merge(CHANNEL.factors(weight, rank, moments))
        torch.testing.assert_close(PIVOT.merge(factors), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 6, 5), (3, 40, 8), (1, 64, 63), (2, 128, 40), (1, 30, 1), (4, 5, 5)])
def test_coefficients_are_small_and_pivots_exact(size):
    """The rows of about the largest volume; also where columns of B differ much in size and rows repeat each other."""
    random = torch.Generator().manual_seed(size[1])
    basis = torch.randn(size, generator=random, dtype=torch.float64) * torch.logspace(0, -6, size[2], dtype=torch.float64)
    basis[:, -1] = basis[:, 0] if size[1] > size[2] else basis[:, -1]
    rows, coefficients = pivoted(basis)
    assert torch.equal(rows, rows.sort(1).values) and all(len(set(row.tolist())) == size[2] for row in rows)
    assert torch.equal(picked(coefficients, rows), torch.eye(size[2], dtype=torch.float64).expand(size[0], -1, -1))
    assert coefficients.abs().max() <= LARGEST + 1e-6
    torch.testing.assert_close(coefficients @ picked(basis, rows), basis, rtol=1e-8, atol=1e-12)


def test_weights_without_a_full_rank():
    """Dead outputs, repeated outputs and a kernel of zeros have pivots all the same."""
    weight = torch.randn(1, 8, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight[:, 2:5], weight[:, 6] = 0, weight[:, 7]
    for kernel in (weight, torch.zeros_like(weight)):
        for rank in range(1, 9):
            factors = PIVOT.factors(kernel, rank)
            assert all(factor.isfinite().all() for factor in factors)
            torch.testing.assert_close(PIVOT.merge(factors), CHANNEL.merge(CHANNEL.factors(kernel, rank)), rtol=0, atol=1e-9)
