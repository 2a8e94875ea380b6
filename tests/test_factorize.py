"""Every promise of every decomposition, over a table of all decompositions x geometries."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

import spectrim as st
from nets import GEOMETRIES, layer_and_input
from spectrim.factorize import FACTORIZATIONS, _base, describe, parse
from spectrim.factorize._base import from_canonical, harm, symmetric_roots, to_canonical
from spectrim.score.menu import build_options
from spectrim.statistics import statistics
from spectrim.surgery import working_weight
from spectrim.testing import check_factorization

METHODS = [
    st.ChannelSVD(),
    st.InputSVD(),
    st.SpatialSVD(),
    st.SpatialSVD(axis=1),
    st.SpatialSVD(axis=2),
    st.Tucker2(),
    st.CP(),
    st.CP(depthwise="kernel"),
    st.TensorTrain(),
    st.TiledSVD(),
    st.TiledSVD(rows=4, columns=1),
    st.TiledSVD(rows=1, columns=3),
]
FITS = {  # for how many of the geometries each method must be possible: a method that fits nothing checks nothing
    "ChannelSVD": 29,
    "InputSVD": 24,
    "SpatialSVD": 23,
    "SpatialSVD(axis=1)": 23,
    "SpatialSVD(axis=2)": 2,
    "Tucker2": 24,
    "CP": 27,
    "CP(depthwise='kernel')": 27,
    "TensorTrain": 28,
    "TiledSVD": 22,
    "TiledSVD(rows=4, columns=1)": 20,
    "TiledSVD(rows=1, columns=3)": 18,
}


@pytest.mark.parametrize("method", METHODS, ids=describe)
def test_contract_for_every_geometry(method):
    fitting = 0
    for name in GEOMETRIES:
        module, x = layer_and_input(name)
        try:
            fitting += check_factorization(method, module, x)
        except AssertionError as error:
            raise AssertionError(f"{describe(method)} on {name!r}: {error}") from error
    assert fitting == FITS[describe(method)]


@pytest.mark.parametrize("method", METHODS[:9], ids=describe)
def test_single_precision_is_exact_to_1e_5(method):
    for name in ("plain", "groups", "conv3d", "transposed", "linear"):
        module, x = layer_and_input(name, dtype=torch.float32)
        (layer,) = st.find_layers(nn.Sequential(module), x)
        if method.fits(layer):
            network = nn.Sequential(module)
            plan = st.plan_from(network, x, {"0": (method, method.full_rank(layer))})
            y, z = network(x), st.apply(plan, network)(x)
            assert (y - z).abs().max() / y.abs().max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(some.data())
def test_random_geometries(data):
    draw = data.draw
    groups = draw(some.sampled_from([1, 1, 2, 3]))
    kernel = (draw(some.integers(1, 4)), draw(some.integers(1, 4)))
    options = {
        "stride": (draw(some.integers(1, 3)), draw(some.integers(1, 2))),
        "padding": (draw(some.integers(0, 2)), draw(some.integers(0, 3))),
        "dilation": (draw(some.integers(1, 2)), draw(some.integers(1, 3))),
        "bias": draw(some.booleans()),
        "groups": groups,
    }
    kind = draw(some.sampled_from([nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d]))
    if kind is nn.Conv2d:
        options["padding_mode"] = draw(some.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    channels = (groups * draw(some.integers(1, 4)), groups * draw(some.integers(1, 4)))
    module = kind(*channels, kernel, **options).double()
    x = torch.randn(4, channels[0], 11, 13, dtype=torch.float64)
    check_factorization(draw(some.sampled_from(METHODS)), module, x, tolerance=1e-8)


@pytest.mark.parametrize("method", [m for m in METHODS[:9] if m != st.SpatialSVD(axis=2)], ids=describe)
def test_error_falls_with_rank(method):
    module, x = layer_and_input("plain")
    network = nn.Sequential(module)
    (layer,) = st.find_layers(network, x)
    weight = working_weight(layer, module)
    for moments in (None, statistics(network, [layer], [x])["0"]):
        ranks = method.candidates(layer)
        losses = method.losses(weight, ranks, moments)
        pairs = [(a, b) for a, b in zip(zip(ranks, losses, strict=True), zip(ranks[1:], losses[1:], strict=True), strict=False)]
        for (low, more), (high, less) in pairs:
            if isinstance(low, int) or all(a <= b for a, b in zip(low, high, strict=True)):
                assert less <= more * 1.02 + 1e-9, f"{describe(method)}: rank {high} is worse than {low}"
        assert losses[-1] < 1e-6 * max(losses) + 1e-12 or not isinstance(method, (st.ChannelSVD, st.SpatialSVD))


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
def test_plain_fits_equal_tensorly():
    weight = torch.randn(1, 8, 6, 3, 3, dtype=torch.float64)
    dense = weight[0].numpy()

    def close(method, rank, expected):
        merged = method.merge(method.factors(weight, rank))[0].numpy()
        ours, theirs = np.linalg.norm(merged - dense), np.linalg.norm(expected - dense)
        assert ours <= theirs * 1.02 + 1e-12, f"{describe(method)}: error {ours:.4f}, tensorly's {theirs:.4f}"
        return merged

    u, s, v = tensorly.tenalg.svd_interface(dense.reshape(8, -1), n_eigenvecs=3)
    np.testing.assert_allclose(
        close(st.ChannelSVD(), 3, ((u * s) @ v).reshape(dense.shape)), ((u * s) @ v).reshape(dense.shape)
    )
    swapped = dense.transpose(1, 2, 0, 3)
    u, s, v = tensorly.tenalg.svd_interface(swapped.reshape(18, 24), n_eigenvecs=5)
    spatial = ((u * s) @ v).reshape(swapped.shape).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(close(st.SpatialSVD(), 5, spatial), spatial)
    core, factors = tensorly.decomposition.partial_tucker(dense, rank=[5, 4], modes=[0, 1])[0]
    hosvd = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    merged = st.Tucker2().merge(st.Tucker2().factors(weight, (4, 5)))[0].numpy()
    assert np.linalg.norm(merged - dense) <= 1.03 * np.linalg.norm(hosvd - dense)  # one pass against iterated HOOI
    train = tensorly.decomposition.tensor_train(dense.transpose(1, 2, 3, 0), rank=[1, 4, 7, 5, 1])
    close(st.TensorTrain(), (4, 7, 5), tensorly.tt_to_tensor(train).transpose(3, 0, 1, 2))
    state = np.random.RandomState(0)
    cp = tensorly.decomposition.parafac(dense, rank=6, n_iter_max=60, init="svd", random_state=state)
    merged = st.CP().merge(st.CP().factors(weight, 6))[0].numpy()
    assert np.linalg.norm(merged - dense) <= 1.05 * np.linalg.norm(tensorly.cp_to_tensor(cp) - dense)
    flat = dense.reshape(*dense.shape[:2], -1)
    cp = tensorly.decomposition.parafac(flat, rank=6, n_iter_max=60, init="svd", random_state=state)
    whole = st.CP(depthwise="kernel")
    other = whole.merge(whole.factors(weight, 6))[0].numpy()
    assert np.linalg.norm(other.reshape(flat.shape) - flat) <= 1.05 * np.linalg.norm(tensorly.cp_to_tensor(cp) - flat)
    assert np.linalg.norm(other - dense) < np.linalg.norm(merged - dense)  # whose terms are a special case


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


@pytest.mark.parametrize("multiple_of", [1, 4])
def test_multiples_between_the_ranks_that_cp_is_fitted_at(multiple_of):
    """Their harms are interpolated: what a fit finds, as far as fits from one start are smooth in the rank."""
    torch.manual_seed(0)
    module, method = nn.Conv2d(24, 24, 3, padding=1), st.CP("kernel")
    model, x = nn.Sequential(module).double(), torch.randn(8, 24, 6, 6, dtype=torch.float64)
    layer = st.find_layers(model, x)[0]
    moments = statistics(model, [layer], [x])["0"]
    row = build_options(layer, module, [method], moments=moments, multiple_of=multiple_of)[1:]
    ranks = [option.rank for option in row]
    if multiple_of == 1:
        assert ranks == method.ranks(layer)
    else:
        assert ranks == list(range(multiple_of, ranks[-1] + 1, multiple_of)) and len(ranks) > 15
    found = method.losses(working_weight(layer, module), ranks, moments)
    assert [option.harm for option in row] == pytest.approx(found, rel=0.1)


def test_channel_svd_in_response_space_beats_every_other_kernel_of_its_rank():
    """The closed form against gradient descent on the same loss over all kernels of the rank."""
    module, x = layer_and_input("plain")
    network = nn.Sequential(module)
    (layer,) = st.find_layers(network, x)
    weight, moments = working_weight(layer, module), statistics(network, [layer], [x])["0"]
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


def test_weighted_spatial_svd_beats_the_plain_one_in_the_norm_that_matters():
    module, x = layer_and_input("plain", batch=32)
    network = nn.Sequential(module)
    (layer,) = st.find_layers(network, x)
    weight, moments = working_weight(layer, module), statistics(network, [layer], [x])["0"]
    for method in (st.SpatialSVD(), st.SpatialSVD(axis=1), st.InputSVD(), st.CP(), st.CP("kernel"), st.TiledSVD()):
        rank = method.candidates(layer)[len(method.candidates(layer)) // 3]
        plain = harm(weight, method.merge(method.factors(weight, rank)), moments)
        fitted = harm(weight, method.merge(method.factors(weight, rank, moments)), moments)
        assert fitted < plain, describe(method)


def test_roots_of_a_layer_are_computed_once_and_forgotten_with_it(monkeypatch):
    calls = []
    monkeypatch.setattr(_base, "symmetric_roots", lambda matrix: (calls.append(matrix.shape), symmetric_roots(matrix))[1])
    module, x = layer_and_input("plain")
    moments = statistics(nn.Sequential(module), st.find_layers(nn.Sequential(module), x), [x])["0"]
    before = len(_base._roots)
    root, inverse = _base.gradient_roots(moments)
    again = _base.gradient_roots(dataclasses.replace(moments, covariance=None))  # as a refit changes all but G
    assert again[0] is root and again[1] is inverse and len(calls) == 1
    other = dataclasses.replace(moments, gradient=2 * moments.gradient)
    torch.testing.assert_close(_base.gradient_roots(other)[0], 2**0.5 * root)
    assert len(_base._roots) == before + 2
    del moments, other
    assert len(_base._roots) == before


@pytest.mark.parametrize("name", GEOMETRIES)
def test_canonical_form_is_undone(name):
    module, x = layer_and_input(name)
    (layer,) = st.find_layers(nn.Sequential(module), x)
    assert torch.equal(from_canonical(layer, to_canonical(layer, module.weight)), module.weight)


def test_names():
    assert all(parse(name) == method() for name, method in FACTORIZATIONS.items())
    assert describe(parse("SpatialSVD", {"axis": 1})) == "SpatialSVD(axis=1)"
    with pytest.raises(ValueError, match="no decomposition 'SVD2'; allowed are ChannelSVD"):
        parse("SVD2")
    with pytest.raises(ValueError, match="does not take"):
        parse("ChannelSVD", {"axis": 1})
    with pytest.raises(ValueError, match="axis=7"):
        st.SpatialSVD(axis=7)
    with pytest.raises(ValueError, match="rows=0"):
        st.TiledSVD(rows=0)


@dataclass(frozen=True)
class Mine(st.ChannelSVD):
    """A decomposition of the user that begins with one of ours."""

    option: int = 1


def test_a_subclass_of_a_decomposition_comes_back_from_json():
    module, x = layer_and_input("plain")
    plan = st.plan_from(nn.Sequential(module), x, {"0": (Mine(option=2), 3)})
    assert st.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("method", "rank", "error"),
    [
        (st.ChannelSVD(), 0, ValueError),
        (st.ChannelSVD(), 9, ValueError),
        (st.ChannelSVD(), (2, 2), ValueError),
        (st.ChannelSVD(), 2.5, TypeError),
        (st.ChannelSVD(), True, TypeError),
        (st.Tucker2(), 3, ValueError),
        (st.SpatialSVD(axis=2), 1, ValueError),
    ],
)
def test_impossible_ranks_get_one_sentence(method, rank, error):
    module, x = layer_and_input("plain")
    with pytest.raises(error, match="layer '0'"):
        st.plan_from(nn.Sequential(module), x, {"0": (method, rank)})
