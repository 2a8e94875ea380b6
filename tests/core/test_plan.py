"""Plans: as text and back, edited by hand, with decompositions of third parties."""

import dataclasses
import json
import types
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as drawn
from torch import nn

import spectrim as st
from mutations import examples, mutated, sentence
from nets import Residual, layer_and_input
from spectrim.core.factorization import describe, parse
from spectrim.core.progress import Spent
from tables import METHODS, fitting, pair


@dataclass(frozen=True)
class Mine(st.ChannelSVD):
    """A decomposition of a third party that begins with one of ours."""

    option: int = 1


def two_layers():
    model, x = Residual().eval(), torch.zeros(1, 3, 8, 8)
    return model, x, st.plan_from(model, x, {"conv2": (st.SpatialSVD(axis=1), 6), "conv1": (st.Tucker2(), (4, 5))})


@pytest.mark.parametrize("method", METHODS, ids=describe)
def test_methods_come_back_from_their_names_and_options(method):
    assert parse(type(method).__name__, dataclasses.asdict(method)) == method
    text = describe(method)  # as written in code, but for empty parentheses
    assert eval(text if text.endswith(")") else f"{text}()", vars(st)) == method


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("SVD2", {}, "no decomposition 'SVD2'; allowed are ChannelSVD"),
        ("ChannelSVD", {"axis": 1}, "ChannelSVD does not take the options"),
        ("SpatialSVD", {"axis": 7}, "axis=7; allowed are 0"),
        ("TiledSVD", {"rows": 0}, "rows=0"),
        ("CP", {"depthwise": "all"}, "depthwise='all'; allowed are 'axes' and 'kernel'"),
    ],
)
def test_impossible_methods_get_one_sentence(name, options, words):
    with pytest.raises(ValueError, match=words):
        parse(name, options)


@pytest.mark.parametrize(("method", "geometry"), fitting(), ids=pair)
def test_every_plan_comes_back_from_json(method, geometry):
    module, x = layer_and_input(geometry)
    network = nn.Sequential(module)
    full = method.full_rank(st.find_layers(network, x)[0].convolution)
    plan = st.plan_from(network, x, {"0": (method, full)})
    option = dataclasses.replace(plan["0"], harm=0.25, bias=True)
    plan = dataclasses.replace(plan, choices={"0": option}, spent=Spent({"search": 1.0}))
    again = st.Plan.from_json(plan.to_json())
    assert again == plan and again.cost == plan.cost and again.to_json() == plan.to_json()
    assert again.spent == Spent()  # what choosing took is not what the plan is


def test_layers_come_in_order_of_execution_and_costs_are_those_of_the_network():
    model, x, plan = two_layers()
    assert list(plan) == ["conv1", "conv2"] and plan.harm == 0
    assert plan.cost == st.cost(st.apply(plan, model), x)


def test_edited_ranks_and_methods():
    model, x, plan = two_layers()
    edited = st.Plan.from_json(plan.to_json().replace('"rank": 6', '"rank": 3'))
    assert edited["conv2"].rank == 3 and edited.cost == st.cost(st.apply(edited, model), x) != plan.cost
    data = json.loads(plan.to_json())
    data["layers"]["conv1"] |= {"method": "ChannelSVD", "rank": 2}
    other = st.Plan.from_json(json.dumps(data))
    assert other["conv1"].method == st.ChannelSVD() and other.cost == st.cost(st.apply(other, model), x)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"rank": 6', '"rank": 60', "out of range"),
        ('"rank": 6', '"rank": 6.5', "not a whole number|incomplete"),
        ("Tucker2", "Tucker9", "no decomposition 'Tucker9'; allowed are"),
        ('"axis": 1', '"axes": 1', "does not take the options"),
        ("spectrim-plan-1", "other", "no plan: its 'format' must be"),
        ('"kind"', '"sort"', "incomplete"),
        ('"original"', '"originally"', "incomplete"),
        ("{", "", "no JSON"),
        ('"axis": 1', '"axis": "1\\n"', r"axis='1\\n'; allowed are 0"),
        ('"rank": 6', '"rank": 6, "rank": 5', "no JSON: 'rank' is there twice"),
        ('"bias": false,\n   "harm"', '"bias": 1,\n   "harm"', r"layers\['conv1'\].bias is 1; it must be true or false"),
        ('"params": ', '"params": 1e400, "params_": ', r"original.params is inf; it must be a whole number"),
        ('"stride": [', '"stride": [1, ', "dilation, padding_mode or pad of layer 'conv1' does not go with the rest"),
        ('"conv2": {', '"": {', "the row of '' describes"),
        ('"kind": "Conv2d"', '"kind": "Flatten"', "the row of 'conv1' describes 'Flatten', which is no layer"),
        ('"layers"', '"deep": ' + "[" * 60 + "]" * 60 + ', "layers"', "nested more than 50 deep"),
    ],
)
def test_what_is_no_plan_gets_a_sentence(old, new, words):
    text = two_layers()[2].to_json()
    assert old in text
    with pytest.raises(ValueError, match=words) as caught:
        st.Plan.from_json(text.replace(old, new, 1) if old == "{" else text.replace(old, new))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("stride", [2, 2]), ("dilation", [2, 2]), ("padding_mode", "circular"), ("pad", [[1, 1], [1, 1]])]
)
def test_a_geometry_that_is_not_the_layers_is_refused(field, value):
    model, _, plan = two_layers()
    data = json.loads(plan.to_json())
    data["layers"]["conv2"]["layer"][field] = value
    with pytest.raises(ValueError, match=f"the plan does not fit the model: the {field} of layer 'conv2' is"):
        st.apply(st.Plan.from_json(json.dumps(data)), model)


def test_a_row_copied_to_another_layer_is_about_that_layer():
    model, x, plan = two_layers()
    data = json.loads(plan.to_json())
    data["layers"] = {"conv2": data["layers"]["conv1"]}  # of the same shape; its name inside was not edited
    copied = st.Plan.from_json(json.dumps(data))
    small = st.apply(copied, model)
    assert isinstance(small.conv2, nn.Sequential) and isinstance(small.conv1, nn.Conv2d) and st.cost(small, x) == copied.cost
    torch.testing.assert_close(
        small.conv2(torch.ones(1, 8, 5, 5)),
        st.apply(st.plan_from(model, x, {"conv2": (st.Tucker2(), (4, 5))}), model).conv2(torch.ones(1, 8, 5, 5)),
    )


@pytest.mark.parametrize(
    ("method", "rank", "error"),
    [
        (st.ChannelSVD(), 0, ValueError),
        (st.ChannelSVD(), 9, ValueError),
        (st.ChannelSVD(), (2, 2), ValueError),
        (st.ChannelSVD(), (2,), ValueError),
        (st.CP(), (2,), ValueError),
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


@pytest.mark.parametrize(
    ("choices", "error", "words"),
    [
        ({"conv9": (st.ChannelSVD(), 2)}, ValueError, "there is no such layer; the layers are stem"),
        ({"conv1": 3}, TypeError, r"must be \(method, rank\)"),
        ({"conv1": ("ChannelSVD", 3)}, TypeError, r"must be \(method, rank\)"),
    ],
)
def test_impossible_choices_get_one_sentence(choices, error, words):
    with pytest.raises(error, match=words):
        st.plan_from(Residual().eval(), torch.zeros(1, 3, 8, 8), choices)


def third_party_plan(method):
    module, x = layer_and_input("plain")
    return st.plan_from(nn.Sequential(module), x, {"0": (method, 3)})


def test_a_third_partys_method_comes_back_and_names_its_module():
    plan = third_party_plan(Mine(option=2))
    row = json.loads(plan.to_json())["layers"]["0"]
    assert (row["method"], row["module"], row["options"]) == ("Mine", Mine.__module__, {"option": 2})
    assert st.Plan.from_json(plan.to_json()) == plan
    assert "module" not in json.loads(third_party_plan(st.ChannelSVD()).to_json())["layers"]["0"]


def test_where_its_class_is_unknown_the_module_to_import_is_named():
    text = third_party_plan(Mine()).to_json()
    elsewhere = text.replace('"Mine"', '"Gone"').replace(Mine.__module__, "their.methods")
    with pytest.raises(ValueError, match="no decomposition 'Gone'; it was defined in the module 'their.methods'; import that"):
        st.Plan.from_json(elsewhere)


def test_the_module_decides_among_classes_of_one_name():
    """Two packages may both have a `Twin`; a plan gets the one that it was made with."""

    def twin(module):
        return dataclass(frozen=True)(
            types.new_class("Twin", (st.ChannelSVD,), {}, lambda body: body.update(__module__=module))
        )

    kinds = [twin("first.package"), twin("second.package")]
    for kind in kinds:
        plan = third_party_plan(kind())
        assert type(st.Plan.from_json(plan.to_json())["0"].method) is kind


MANY = (
    *(st.ChannelSVD(), st.SpatialSVD(axis=1), st.Tucker2(), st.CP(), st.TensorTrain(), st.InputSVD(), st.TiledSVD()),
    *(st.SpatialSVD(), st.CP(depthwise="kernel")),
)


@pytest.fixture(scope="module")
def plans():
    """Small networks, and the text of a plan for each."""
    found = []
    for number, name in enumerate(("uneven stride", "transposed", "conv1d groups", "linear on a map")):
        module, x = layer_and_input(name, dtype=torch.float32)
        width = module(x).shape[1]
        after = nn.Linear(width, 5) if isinstance(module, nn.Linear) else nn.PReLU()
        network = nn.Sequential(nn.Identity() if x.ndim > 2 else nn.Flatten(), module, nn.PReLU(), after).eval()
        layers = st.find_layers(network, x)
        fits = [[method for method in MANY if method.fits(layer.convolution)] for layer in layers]
        chosen = {
            layer.name: (own[number % len(own)], own[number % len(own)].full_rank(layer.convolution))
            for layer, own in zip(layers, fits, strict=True)
            if own
        }
        found.append((network, x[:2], st.plan_from(network, x, chosen).to_json()))
    assert all(json.loads(text)["layers"] for *_, text in found)
    return found


@examples(100)
@given(seed=drawn.integers(0, 2**40))
def test_plans_of_any_json(plans, seed):
    network, x, text = plans[seed % len(plans)]
    plan = sentence(st.Plan.from_json, mutated(text, seed))
    if plan is None:
        return
    again = st.Plan.from_json(plan.to_json())
    assert again == plan and again.cost == plan.cost and plan.harm == plan.harm
    assert all(isinstance(number, int) for number in (plan.cost.params, plan.cost.macs))
    small = sentence(st.apply, plan, network)
    if small is not None:
        assert small(x).shape == network(x).shape
        saved = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in small.parameters())
        assert saved == plan.original.params - plan.cost.params
        if any(option.rank != option.method.full_rank(option.layer.convolution) for option in plan.values()):
            return
        torch.testing.assert_close(small(x), network(x), rtol=1e-3, atol=1e-3)
    elif not seed % 5:
        sentence(lambda: st.compress(network, x, plan=plan))
