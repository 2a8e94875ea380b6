"""Columns of the menu beside the predicted harm: of weights, of moments, measured."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import spectrim as st
from nets import Residual, settle
from spectrim.network.build import working_weight
from spectrim.pipeline.choose import scored
from spectrim.sensitivity.measured import Data, batch_harms, measured_harm, similarity, single_harms
from spectrim.sensitivity.scores import FEW, columns, few
from spectrim.sensitivity.weights import energy, spectral, vbmf, vbmf_rank


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    x = 2 * functional.avg_pool2d(torch.randn(64, 3, 8, 8), 3, 1, 1)
    config = st.Config(methods=(st.ChannelSVD(),), batch=40)
    return st.prepare(settle(Residual(), x), x[:1], calibration=[x], config=config)


def data_of(prepared):
    return Data(prepared.calibration, prepared.moments, prepared.harm)


@pytest.mark.parametrize("method", [st.ChannelSVD(), st.SpatialSVD()])
def test_scores_of_weights_are_those_of_the_singular_values(method):
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    layer = {layer.name: layer for layer in st.find_layers(model, x)}["conv2"]
    weight = working_weight(layer, model.conv2)
    matrix = weight[0].flatten(1) if isinstance(method, st.ChannelSVD) else weight[0].permute(1, 2, 0, 3).reshape(24, 24)
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    shares = [(values[rank:] ** 2).sum() / (values**2).sum() for rank in (2, 5)]
    np.testing.assert_allclose(energy(method, layer, weight, [2, 5]), shares)
    low, high = vbmf(method, layer, weight, [2, 4])
    assert low - high == pytest.approx(np.log(2))
    whole = np.linalg.svd(weight[0].flatten(1).numpy(), compute_uv=False)
    merged = [method.merge(method.factors(weight, rank)) for rank in (2, 5)]
    norms = [np.linalg.norm((weight - kernel)[0].flatten(1).numpy(), 2) / whole[0] for kernel in merged]
    np.testing.assert_allclose(spectral(method, layer, weight, [2, 5]), norms)
    if isinstance(method, st.ChannelSVD):
        np.testing.assert_allclose(norms, [whole[2] / whole[0], whole[5] / whole[0]])


@pytest.mark.parametrize("rank", [0, 3, 10])
def test_vbmf_finds_the_rank_under_noise(rank):
    random = np.random.default_rng(0)
    signal = random.normal(size=(60, rank)) @ random.normal(size=(rank, 300))
    assert vbmf_rank(signal + 0.5 * random.normal(size=(60, 300))) == rank


def test_the_whitened_share_is_that_of_the_output_energy(prepared):
    found = list(columns(prepared.menu, "whitened", "macs", prepared.model, data_of(prepared)))
    for row, column in zip(prepared.menu.layers, found, strict=True):
        values = torch.linalg.eigvalsh(prepared.moments[row.layer.name].response[0]).flip(0)
        wanted = [0.0] + [float(values[option.rank :].sum() / values.sum()) for option in row.options[1:]]
        np.testing.assert_allclose(column, wanted, rtol=1e-6)


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_few_options_are_measured_the_cheapest_among_them(prepared, metric):
    for row in prepared.menu.layers:
        numbers, costs = few(row, metric), row.costs[metric]
        assert 0 < len(numbers) <= FEW + 1 and 0 not in numbers and len(set(numbers.tolist())) == len(numbers)
        assert set(numbers.tolist()) <= set(row.frontier(metric).tolist()) and costs[numbers].min() == costs.min()
    bare = st.LayerMenu.of(prepared.menu.layers[0].options[:1], [0.0])
    assert few(bare, metric).tolist() == []


def maps(network, name, x):
    found = []
    hook = network.get_submodule(name).register_forward_hook(lambda module, args, output: found.append(output.flatten(1)))
    with torch.no_grad():
        network.eval()(x)
    hook.remove()
    return found[0]


def test_single_harms_and_similarity_see_one_layer_at_a_time(prepared):
    model, x = prepared.model, torch.cat(list(prepared.calibration))
    rows = [[row.options[index] for index in few(row, "macs")] for row in prepared.menu.layers]
    harms, unlike = list(single_harms(model, rows, data_of(prepared))), similarity(model, rows, data_of(prepared))
    for row, measured, distances in zip(rows, harms, unlike, strict=True):
        assert len(row) == len(measured) == len(distances)
        for option, harm, distance in list(zip(row, measured, distances, strict=True))[::4]:
            small = st.apply(st.Plan({option.layer.name: option}, prepared.original), model, moments=prepared.moments)
            assert measured_harm(model, small, [x]) == pytest.approx(harm, abs=1e-6)
            seen = [maps(network, option.layer.name, x) for network in (model, small)]
            assert 1 - float(functional.cosine_similarity(*seen).mean()) == pytest.approx(distance, abs=1e-5)
    for name in ("measured", "similarity"):
        found = columns(prepared.menu, name, "macs", model, data_of(prepared))
        wanted = harms if name == "measured" else unlike
        for row, column, values in zip(prepared.menu.layers, found, wanted, strict=True):
            assert np.flatnonzero(~np.isnan(column)).tolist() == sorted([0, *few(row, "macs").tolist()])
            assert column[0] == 0 and column[few(row, "macs")].tolist() == values


def test_harm_is_averaged_over_examples_not_batches(prepared):
    model, x = prepared.model, torch.cat(list(prepared.calibration))
    plan = prepared.menu.plan([len(row.options) // 3 for row in prepared.menu.layers])
    small = st.apply(plan, model)
    whole, parts = measured_harm(model, small, [x]), list(x.split([1, 3, len(x) - 4]))
    assert measured_harm(model, small, parts) == pytest.approx(whole, rel=1e-5)
    each = batch_harms(model, small, parts, prepared.harm)
    assert np.average(each, weights=[1, 3, len(x) - 4]) == pytest.approx(whole, rel=1e-5) and np.std(each) > 0


@pytest.mark.parametrize(
    "search", [st.Greedy(), st.Similarity(), st.Knapsack(score="whitened"), st.Energy(score="whitened")], ids=repr
)
def test_scores_of_data_need_data(search):
    prepared = st.prepare(Residual(), torch.zeros(1, 3, 8, 8), config=st.Config(search=search))
    with pytest.raises(ValueError, match="looks at calibration images; give calibration, or take Knapsack, Energy or ALDS"):
        st.choose(prepared, st.Keep(0.6))


def test_scores_that_nothing_computes_are_named(prepared):
    with pytest.raises(
        ValueError, match="the score 'loud', which nothing computes; there are response, closed, cautious, energy, spectral"
    ):
        next(columns(prepared.menu, "loud", "macs", prepared.model, None))


def test_the_menu_gets_the_column_once(prepared):
    config = st.Config(methods=(st.ChannelSVD(),), search=st.Energy())
    energetic = scored(st.prepare(prepared.model, prepared.example, config=config), "macs")
    assert {"response", "cautious", "closed", "energy"} == set(energetic.menu.layers[0].scores) and scored(
        energetic, "macs"
    ) is energetic
    assert scored(prepared, "macs") is prepared  # the predicted harm is always there
