"""The contract of a decomposition, over every pair of a decomposition and a geometry that it can take."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as some
from torch import nn

import spectrim as st
from nets import GEOMETRIES, layer_and_input
from spectrim.core.factorization import describe
from spectrim.factorize import cp
from spectrim.network.build import working_weight
from spectrim.sensitivity.moments import gather_moments
from spectrim.testing import check_factorization
from tables import LAYERS, METHODS, fitting, pair

FITS = {  # how many of the geometries each method can take: one that takes none would check nothing
    "ChannelSVD": 29,
    "PivotSVD": 29,
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


@pytest.fixture(scope="module", autouse=True)
def _few_sweeps():
    """Alternating least squares keeps its promises after any number of sweeps; how near it comes is for test_methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cp, "SWEEPS", 8)
        yield


@pytest.mark.parametrize(("method", "geometry"), fitting(), ids=pair)
def test_every_promise_is_kept(method, geometry):
    several = 64 if geometry == "linear on a map" else 6  # more than its inputs, which are all at one position
    assert check_factorization(method, *layer_and_input(geometry, several))


@pytest.mark.parametrize("data", [False, True], ids=["weights", "moments"])
@pytest.mark.parametrize(("method", "geometry"), fitting(), ids=pair)
def test_kernels_of_many_ranks_are_those_of_each(method, geometry, data):
    """In any order, also where they come from one decomposition for all."""
    module, x = layer_and_input(geometry, 64)
    network = nn.Sequential(module)
    (layer,) = st.find_layers(network, x)
    weight, moments = working_weight(layer, module), gather_moments(network, [layer], [x])["0"] if data else None
    candidates = method.candidates(layer.convolution)
    ranks = [candidates[-1], *candidates[:: max(1, len(candidates) // 4)]]
    found = list(method.kernels(weight, ranks, moments))
    assert len(found) == len(ranks)
    for rank, kernel in zip(ranks, found, strict=True):
        wanted = method.merge(method.factors(weight, rank, moments))
        torch.testing.assert_close(kernel, wanted, rtol=0, atol=1e-9 * float(wanted.abs().max()))


@pytest.mark.parametrize("method", METHODS, ids=describe)
def test_what_cannot_be_taken_has_a_reason_and_no_ranks(method):
    refused = [layer for layer in LAYERS.values() if not method.fits(layer)]
    assert len(GEOMETRIES) - len(refused) == FITS[describe(method)]
    for layer in refused:
        assert len(method.fits(layer).reason) > 10, layer
        assert method.ranks(layer) == method.candidates(layer) == []
        with pytest.raises(ValueError, match=f"{method.title} does not fit layer '0': "):
            method.check(layer, 1)


@pytest.mark.parametrize("method", METHODS, ids=describe)
def test_the_check_says_whether_there_was_something_to_check(method):
    refused = next(name for name, layer in LAYERS.items() if not method.fits(layer))
    assert not check_factorization(method, *layer_and_input(refused))


@pytest.mark.parametrize(
    ("method", "geometry"), fitting(METHODS[:10], ("plain", "groups", "conv3d", "transposed", "linear")), ids=pair
)
def test_single_precision_is_exact_to_1e_5(method, geometry):
    module, x = layer_and_input(geometry, dtype=torch.float32)
    network = nn.Sequential(module)
    plan = st.plan_from(network, x, {"0": (method, method.full_rank(LAYERS[geometry]))})
    y, z = network(x), st.apply(plan, network)(x)
    assert (y - z).abs().max() / y.abs().max() < 1e-5


@settings(max_examples=30, deadline=None)
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
    module, x = kind(*channels, kernel, **options).double(), torch.randn(4, channels[0], 11, 13, dtype=torch.float64)
    (layer,) = st.find_layers(nn.Sequential(module), x)
    method = draw(some.sampled_from(METHODS))
    assume(method.fits(layer))
    assert check_factorization(method, module, x, tolerance=1e-8)
