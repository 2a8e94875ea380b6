"""Plans: as text and back, edited by hand, with decompositions of third parties."""

import dataclasses
import json
import types
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import spectrim as st
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
    ],
)
def test_what_is_no_plan_gets_a_sentence(old, new, words):
    text = two_layers()[2].to_json()
    assert old in text
    with pytest.raises(ValueError, match=words):
        st.Plan.from_json(text.replace(old, new, 1) if old == "{" else text.replace(old, new))


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
