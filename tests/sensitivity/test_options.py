"""What can be done to one layer: which methods and ranks are offered, and the harms of the multiples between."""

import numpy as np
import pytest
import torch
from torch import nn

import spectrim as st
from nets import layer_and_input
from spectrim.core.factorization import as_tuple, describe, pays
from spectrim.core.menu import RESPONSE
from spectrim.core.plan import Option
from spectrim.network.build import working_weight
from spectrim.sensitivity import moments as moments_module
from spectrim.sensitivity.moments import gather_moments
from spectrim.sensitivity.options import layer_menu, offers
from tables import PLANAR


def world(module, x):
    network = nn.Sequential(module)
    (layer,) = st.find_layers(network, x)
    return layer, working_weight(layer, module), gather_moments(network, [layer], [x])["0"]


def menu_of(layer, weight, methods, moments, multiple_of=1):
    offered = offers(layer, methods, moments, multiple_of=multiple_of)
    harms = [method.losses(weight, ranks, moments) for method, ranks in offered]
    return layer_menu(layer, offered, harms, bias=moments is not None, multiple_of=multiple_of)


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("method", PLANAR, ids=describe)
def test_every_rank_that_pays_is_offered_with_its_harm(method, data):
    module = nn.Conv2d(12, 16, 3, padding=1, bias=False).double()
    layer, weight, moments = world(module, torch.randn(8, 12, 6, 6, dtype=torch.float64))
    moments = moments if data else None
    row = menu_of(layer, weight, [method], moments)
    wanted = [rank for rank in method.candidates(layer) if pays(Option(layer, method, rank, bias=data).cost, layer.cost)]
    assert row.options[0] == Option(layer) and row.scores[RESPONSE][0] == 0
    assert [option.rank for option in row.options[1:]] == wanted and len(wanted) > 2
    assert all(option.bias == data and option.method == method for option in row.options[1:])
    np.testing.assert_allclose(row.scores[RESPONSE][1:], method.losses(weight, wanted, moments))


@pytest.mark.parametrize("method", PLANAR, ids=describe)
def test_only_multiples_are_offered(method):
    layer, weight, moments = world(nn.Conv2d(24, 24, 3, padding=1).double(), torch.randn(6, 24, 6, 6, dtype=torch.float64))
    ranks = [option.rank for option in menu_of(layer, weight, [method], moments, 4).options[1:]]
    assert all(number % 4 == 0 for rank in ranks for number in as_tuple(rank))
    assert len(ranks) >= 1 or isinstance(method, st.TensorTrain)  # whose ranks follow a line on which few are


def test_methods_compete_in_order():
    layer, weight, moments = world(*layer_and_input("plain"))
    methods = (st.SpatialSVD(), st.ChannelSVD(), st.SpatialSVD(axis=1))
    row = menu_of(layer, weight, methods, moments)
    order = [option.method for option in row.options[1:]]
    assert list(dict.fromkeys(order)) == list(methods) and sorted(order, key=methods.index) == order


def test_without_input_covariance_only_methods_that_need_none_are_offered(monkeypatch):
    monkeypatch.setattr(moments_module, "LARGEST", 30)
    layer, _, moments = world(*layer_and_input("plain"))
    assert moments.covariance is None
    assert [method for method, _ in offers(layer, PLANAR, moments)] == [st.ChannelSVD(), st.PivotSVD()]


@pytest.mark.parametrize("multiple_of", [2, 4])
def test_multiples_between_the_ranks_that_cp_is_fitted_at(multiple_of):
    """Their harms are interpolated: what a fit finds, as far as fits from one start are smooth in the rank."""
    torch.manual_seed(0)
    module, method = nn.Conv2d(20, 20, 3, padding=1).double(), st.CP("kernel")
    layer, weight, moments = world(module, torch.randn(8, 20, 6, 6, dtype=torch.float64))
    row = menu_of(layer, weight, [method], moments, multiple_of)
    ranks = [option.rank for option in row.options[1:]]
    fitted = [rank for rank in method.ranks(layer) if rank % multiple_of == 0]
    assert ranks == list(range(multiple_of, ranks[-1] + 1, multiple_of)) and len(ranks) > len(fitted) + 5
    few = ranks[:: len(ranks) // 6]
    found = dict(zip(ranks, row.scores[RESPONSE][1:], strict=True))
    assert [found[rank] for rank in few] == pytest.approx(method.losses(weight, few, moments), rel=0.1)
    exact = method.losses(weight, offers(layer, [method], moments, multiple_of=multiple_of)[0][1], moments)
    at = dict(zip(offers(layer, [method], moments, multiple_of=multiple_of)[0][1], exact, strict=True))
    assert all(found[rank] == at[rank] for rank in fitted)


@pytest.mark.parametrize("multiple_of", [1, 3, 8])
def test_every_column_has_a_score_for_every_option(multiple_of):
    """Also between fitted ranks, where one column falls to nothing sooner than another."""
    layer = st.find_layers(nn.Sequential(nn.Conv2d(24, 24, 3)), torch.randn(1, 24, 8, 8))[0]
    offered = [(st.CP(depthwise="kernel"), [1, 4, 9, 20, 40, 70])]
    first, other = [[1.0, 0.5, 0.2, 0.1, 0.05, 0.01]], [[1.0, 0.1, 1e-3, 1e-5, 1e-7, 0.0]]
    row = layer_menu(layer, offered, first, bias=False, multiple_of=multiple_of, more={"other": other})
    assert len(row.options) == len(row.scores["response"]) == len(row.scores["other"]) > 2
    for option, harm, score in zip(row.options, row.scores["response"], row.scores["other"], strict=True):
        if option.rank in offered[0][1]:
            number = offered[0][1].index(option.rank)
            assert (harm, score) == (first[0][number], other[0][number])
        assert option.rank == 0 or (option.rank % multiple_of == 0 and score <= harm)


# --- what a device likes


LIKED = {
    "plain": (nn.Conv2d(24, 32, 3, padding=1), (24, 6, 6)),
    "few inputs": (nn.Conv2d(3, 32, 3, padding=1), (3, 6, 6)),
    "narrow": (nn.Conv2d(6, 7, 3, padding=1), (6, 6, 6)),
    "groups": (nn.Conv2d(32, 32, 3, padding=1, groups=2), (32, 6, 6)),
    "many groups": (nn.Conv2d(32, 32, 3, padding=1, groups=8), (32, 6, 6)),
    "linear": (nn.Linear(36, 48), (36,)),
}


@pytest.mark.parametrize("name", LIKED)
@pytest.mark.parametrize("method", PLANAR, ids=describe)
def test_inner_widths_are_what_the_device_likes(method, name):
    """Of every entry of a rank either all channels are a multiple of 4, or there is no room for two multiples of 4."""
    module, shape = LIKED[name]
    layer, weight, _ = world(module.double(), torch.randn(4, *shape, dtype=torch.float64))
    if not method.fits(layer):
        pytest.skip(f"{describe(method)} does not take the layer")
    full = as_tuple(method.full_rank(layer))
    row = menu_of(layer, weight, [method], None, lambda width: 4)
    free = menu_of(layer, weight, [method], None)
    for option in row.options[1:]:
        for number, limit in zip(as_tuple(option.rank), full, strict=True):
            assert number * layer.groups % 4 == 0 or limit * layer.groups < 8
    assert len(row.options) > 1 or len(free.options) <= 4  # something is left where there was something


@pytest.mark.parametrize("method", [st.ChannelSVD(), st.SpatialSVD(), st.Tucker2(), st.CP("kernel")], ids=describe)
def test_wider_layers_may_like_coarser_multiples(method):
    """The device is asked for the narrower side of the layer."""
    layer, weight, _ = world(nn.Conv2d(32, 48, 3).double(), torch.randn(2, 32, 6, 6, dtype=torch.float64))
    asked = []
    row = menu_of(layer, weight, [method], None, lambda width: asked.append(width) or 8)
    ranks = [as_tuple(option.rank) for option in row.options[1:]]
    assert set(asked) == {32} and len(ranks) > 2 and all(number % 8 == 0 for rank in ranks for number in rank)


def test_tucker_has_no_multiple_where_a_side_has_none():
    layer = st.find_layers(nn.Sequential(nn.Conv2d(3, 64, 3)), torch.randn(1, 3, 8, 8))[0]
    assert st.Tucker2().multiples(layer, (4, 4)) == [] and st.Tucker2().multiples(layer, (1, 4)) != []


@pytest.mark.parametrize("steps", [(1, 1), (4, 4), (8, 1), (3, 5)])
def test_tucker_has_a_grid_of_multiples(steps):
    layer = st.find_layers(nn.Sequential(nn.Conv2d(40, 64, 3)), torch.randn(1, 40, 8, 8))[0]
    method = st.Tucker2()
    ranks = method.multiples(layer, steps)
    assert ranks == sorted(ranks) and len(ranks) >= 25
    for rank in ranks:
        method.check(layer, rank)
        assert all(number % step == 0 for number, step in zip(rank, steps, strict=True))
    assert method.candidates(layer) == method.multiples(layer, (1, 1))
