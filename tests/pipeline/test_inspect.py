"""inspect() tells what can be done to every layer, and why not."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import spectrim as st
from nets import Odd
from spectrim.core.factorization import describe
from spectrim.network.build import working_weight
from spectrim.pipeline.inspect import ALL


@pytest.fixture(scope="module")
def found(case):
    model, x, _ = case
    return st.inspect(model, x[:2])


def test_every_layer_with_its_cost_and_spectrum(case, found):
    model, x, _ = case
    assert found.total == st.cost(model, x[:2]) and found.inputs == ((3, 8, 8),) and found.harm_unit == ""
    assert [view.layer for view in found.layers] == list(st.find_layers(model, x[:2])) and found.skipped == {}
    for view in found.layers:
        weight = working_weight(view.layer, model.get_submodule(view.layer.name))[0].flatten(1).numpy()
        share = np.cumsum(np.linalg.svd(weight, compute_uv=False) ** 2)
        share /= share[-1]
        assert view.full_rank == len(share) and view.cost == view.layer.cost and view.harm_at_half is None
        assert (view.rank_90, view.rank_99) == tuple(int(np.argmax(share >= bound - 1e-6)) + 1 for bound in (0.9, 0.99))


def test_every_method_has_its_largest_rank_or_a_reason(found):
    for view in found.layers:
        assert set(view.methods) | set(view.reasons) == set(map(describe, ALL)) and not set(view.methods) & set(view.reasons)
        for method in ALL:
            layer, name = view.layer.convolution, describe(method)
            if name in view.methods:
                paying = method.ranks(layer)
                assert view.methods[name] in map(str, paying)
                assert all(
                    method.cost(layer, rank).macs <= method.cost(layer, eval(view.methods[name])).macs for rank in paying
                )
            else:
                assert view.reasons[name] == (method.fits(layer).reason or "no rank pays")
    view = {view.layer.name: view for view in found.layers}["short"]
    assert "cannot be split" in view.reasons["SpatialSVD"]


def test_modules_that_are_left_alone_have_their_reasons():
    found = st.inspect(Odd().eval(), (torch.randn(2, 3, 6, 6), torch.ones(2, 8)))
    assert {"unused", "norm", "tied1", "tied2"} <= set(found.skipped) and found.inputs == ((3, 6, 6), (8,))
    assert "left alone  unused: the forward of the example never calls it" in "\n".join(found.lines())
    assert "left alone  unused" in str(found)


def test_as_text_and_as_json(found):
    text = str(found)
    assert all(view.layer.name in text for view in found.layers) and "3 x 8 x 8" in text and "(axis=1)" in text
    data = json.loads(found.to_json())
    assert [row["layer"]["name"] for row in data["layers"]] == [view.layer.name for view in found.layers]
    assert data["total"] == dataclasses.asdict(found.total)


def test_with_calibration_data_the_harm_at_half_is_told(case):
    model, x, _ = case
    config = st.Config(methods=(st.ChannelSVD(), st.SpatialSVD()))
    found = st.inspect(model, x[:1], calibration=[x], config=config)
    prepared = st.prepare(model, x[:1], calibration=[x], config=config)
    assert found.harm_unit == "nats" and "harm at half" in str(found)
    for view, row in zip(found.layers, prepared.menu.layers, strict=True):
        within = [h for o, h in zip(row.options, row.scores["response"], strict=True) if 2 * o.cost.macs <= row.layer.cost.macs]
        assert view.harm_at_half == (pytest.approx(min(within)) if within else None)


def test_the_argument_of_version_0_1_0_still_works(case):
    model, x, _ = case
    with pytest.warns(DeprecationWarning, match=r"inspect\(methods=...\) is deprecated; write inspect\(config=...\)"):
        old = st.inspect(model, x[:1], methods=(st.ChannelSVD(),))
    assert old == st.inspect(model, x[:1], config=st.Config(methods=(st.ChannelSVD(),)))
    with pytest.raises(TypeError, match="got both methods= and config=, which are one argument; give config= only"):
        st.inspect(model, x[:1], methods=(st.ChannelSVD(),), config=st.Config())


@pytest.mark.parametrize(
    ("model", "example", "error", "words"),
    [
        ("resnet", torch.zeros(1, 3, 8, 8), TypeError, "the model is str; it must be a torch.nn.Module"),
        (nn.Conv2d(3, 4, 3), torch.zeros(1, 4, 8, 8), ValueError, "does not go through the model"),
        (nn.Conv2d(3, 4, 3), torch.tensor(1.0), ValueError, "batch dimension"),
    ],
)
def test_what_cannot_be_inspected_gets_a_sentence(model, example, error, words):
    with pytest.raises(error, match=words):
        st.inspect(model, example)
