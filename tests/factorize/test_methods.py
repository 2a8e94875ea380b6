"""What each decomposition finds: against closed forms, other libraries and gradient descent."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorly
import torch
from torch import nn

import spectrim as st
from nets import GEOMETRIES, layer_and_input
from spectrim.core.factorization import describe
from spectrim.factorize import algebra
from spectrim.factorize.algebra import from_canonical, harm, symmetric_roots, to_canonical
from spectrim.network.build import working_weight
from spectrim.sensitivity.moments import gather_moments
from tables import PLANAR


def plain_layer(**options):
    """A layer of the plain geometry: its network, description, canonical weight and moments."""
    module, x = layer_and_input("plain", **options)
    network = nn.Sequential(module)
    (layer,) = st.find_layers(network, x)
    return network, layer, working_weight(layer, module), gather_moments(network, [layer], [x])["0"]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("method", PLANAR, ids=describe)
def test_error_falls_with_rank_to_nothing(method, weighted):
    _, layer, weight, moments = plain_layer(batch=24)
    ranks = method.candidates(layer)
    losses = dict(zip(ranks, method.losses(weight, ranks, moments if weighted else None), strict=True))
    steps = [(low, high) for low, high in itertools.pairwise(ranks) if np.all(np.less_equal(low, high))]
    assert len(steps) >= len(ranks) // 2 >= 1
    for low, high in steps:
        assert losses[high] <= losses[low] * 1.02 + 1e-9, f"rank {high} is worse than {low}"
    assert ranks[-1] == method.full_rank(layer) and losses[ranks[-1]] < 1e-9 * max(losses.values()) + 1e-12


def dense_kernel():
    """A kernel without structure, as torch and as NumPy see it."""
    weight = torch.randn(1, 8, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return weight, weight[0].numpy()


def truncated(matrix, rank):
    u, s, v = tensorly.tenalg.svd_interface(matrix, n_eigenvecs=rank)
    return (u * s) @ v


def iterated_tucker(kernel):
    core, factors = tensorly.decomposition.partial_tucker(kernel, rank=[5, 4], modes=[0, 1])[0]
    return tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])


def train(kernel):
    cores = tensorly.decomposition.tensor_train(kernel.transpose(1, 2, 3, 0), rank=[1, 4, 7, 5, 1])
    return tensorly.tt_to_tensor(cores).transpose(3, 0, 1, 2)


def parafac(kernel):
    state = np.random.RandomState(0)
    return tensorly.cp_to_tensor(tensorly.decomposition.parafac(kernel, rank=6, n_iter_max=60, init="svd", random_state=state))


OTHERS = {  # method, rank, the same from tensorly, and how much worse than that it may be
    "channel": (st.ChannelSVD(), 3, lambda kernel: truncated(kernel.reshape(8, -1), 3).reshape(kernel.shape), 1.0),
    "input": (
        st.InputSVD(),
        3,
        lambda kernel: truncated(kernel.swapaxes(0, 1).reshape(6, -1), 3).reshape(6, 8, 3, 3).swapaxes(0, 1),
        1.0,
    ),
    "spatial": (
        st.SpatialSVD(),
        5,
        lambda kernel: truncated(kernel.transpose(1, 2, 0, 3).reshape(18, 24), 5).reshape(6, 3, 8, 3).transpose(2, 0, 1, 3),
        1.0,
    ),
    "tucker": (st.Tucker2(), (4, 5), iterated_tucker, 1.03),  # one pass against iterated HOOI
    "train": (st.TensorTrain(), (4, 7, 5), train, 1.0),
    "cp, axes": (st.CP(), 6, parafac, 1.05),
    "cp, kernel": (st.CP("kernel"), 6, lambda kernel: parafac(kernel.reshape(8, 6, -1)).reshape(kernel.shape), 1.05),
}


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
@pytest.mark.parametrize("name", OTHERS)
def test_plain_fits_are_as_near_as_tensorlys(name):
    method, rank, other, factor = OTHERS[name]
    weight, kernel = dense_kernel()
    found, wanted = method.merge(method.factors(weight, rank))[0].numpy(), other(kernel)
    assert np.linalg.norm(found - kernel) <= factor * np.linalg.norm(wanted - kernel) + 1e-12
    if name in ("channel", "input", "spatial"):  # unique
        np.testing.assert_allclose(found, wanted)


def test_separable_terms_are_a_special_case_of_kernels():
    weight, _ = dense_kernel()
    errors = [method.losses(weight, [6])[0] for method in (st.CP("kernel"), st.CP())]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("depthwise", ["axes", "kernel"])
def test_cp_of_a_large_kernel_in_its_leading_subspaces(monkeypatch, depthwise):
    """Alternating least squares on the compressed tensor ends within 3 % of the error on the whole one."""
    random = torch.Generator().manual_seed(1)
    parts = [torch.randn(size, 30, generator=random, dtype=torch.float64) * 0.8 ** torch.arange(30) for size in (48, 56, 3, 3)]
    weight = torch.einsum("tr,sr,ar,br->tsab", *parts)[None] + 0.1 * torch.randn(1, 48, 56, 3, 3, generator=random).double()
    method = st.CP(depthwise=depthwise)
    quick = method.losses(weight, [2, 6, 12])
    monkeypatch.setattr("spectrim.factorize.cp.WIDTH", 1000)
    for found, wanted in zip(quick, method.losses(weight, [2, 6, 12]), strict=True):
        assert found <= 1.03 * wanted


def test_terms_of_cp_do_not_cancel_each_other(monkeypatch):
    """The squared norms of the terms add up to a few times the kernel's, at no loss of fit."""
    weight = torch.randn(1, 16, 16, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method = st.CP(depthwise="kernel")

    def fit():
        first, middle, last = factors = method.factors(weight, 30)
        terms = first.flatten(2).norm(dim=2)[0] * middle.flatten(1).norm(dim=1) * last[0].flatten(1).norm(dim=0)
        merged = method.merge(factors)
        return float((merged - weight).norm()), float((terms**2).sum() / (merged**2).sum())

    error, sensitivity = fit()
    monkeypatch.setattr("spectrim.factorize.cp.SENSITIVITY", (1e-12, 1e-12))
    plain, cancelling = fit()
    assert error < 1.02 * plain
    assert sensitivity < 0.6 * cancelling
    assert sensitivity < 4


def test_channel_svd_in_response_space_beats_every_other_kernel_of_its_rank():
    """The closed form against gradient descent on the same loss over all kernels of the rank."""
    _, _, weight, moments = plain_layer()
    moments = dataclasses.replace(moments, response=weight.flatten(2) @ moments.covariance @ weight.flatten(2).mT)
    method = st.ChannelSVD()
    best = harm(weight, method.merge(method.factors(weight, 3, moments)), moments)
    assert method.losses(weight, [3], moments)[0] == pytest.approx(best, rel=1e-6)
    a = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 54, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([a, b], max_iter=400, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        change = weight[0].flatten(1) - a @ b
        value = 0.5 * torch.einsum("tu,un,nm,tm->", moments.gradient[0], change, moments.covariance[0], change)
        value.backward()
        return value

    optimizer.step(loss)
    assert best <= loss().item() * (1 + 1e-6)


@pytest.mark.parametrize("method", PLANAR, ids=describe)
def test_fits_to_data_beat_plain_ones_in_the_norm_that_matters(method):
    _, layer, weight, moments = plain_layer(batch=32)
    ranks = method.candidates(layer)
    rank = ranks[len(ranks) // 3]
    plain = harm(weight, method.merge(method.factors(weight, rank)), moments)
    assert harm(weight, method.merge(method.factors(weight, rank, moments)), moments) < plain


def test_roots_of_a_layer_are_computed_once_and_forgotten_with_it(monkeypatch):
    eigh, sizes = torch.linalg.eigh, []
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: sizes.append(len(matrix.mT)) or eigh(matrix))
    *_, moments = plain_layer()
    sizes.clear()
    before = len(algebra._roots)
    root, inverse = symmetric_roots(moments.gradient)
    again = symmetric_roots(dataclasses.replace(moments, covariance=None).gradient)  # as a refit changes all but G
    assert again[0] is root and again[1] is inverse and len(sizes) == 1
    torch.testing.assert_close(root @ root, moments.gradient)
    torch.testing.assert_close(root @ inverse, torch.eye(8, dtype=torch.float64)[None])
    other = dataclasses.replace(moments, gradient=4 * moments.gradient)
    torch.testing.assert_close(symmetric_roots(other.gradient)[0], 2 * root)
    assert len(algebra._roots) == before + 2 and len(sizes) == 2
    del moments, other
    assert len(algebra._roots) == before


@pytest.mark.parametrize("name", GEOMETRIES)
def test_canonical_form_is_undone(name):
    module, x = layer_and_input(name)
    (layer,) = st.find_layers(nn.Sequential(module), x)
    assert torch.equal(from_canonical(layer, to_canonical(layer, module.weight)), module.weight)
