"""compress() by a plan of one's own: built, fitted and refitted exactly as a chosen one."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import spectrim as st
from nets import Odd

METHODS = (st.ChannelSVD(), st.SpatialSVD(), st.Tucker2())
CONFIGS = {
    "refit": st.Config(methods=METHODS, batch=40, multiple_of=1),
    "no refit": st.Config(methods=METHODS, refit=False),
    "batchnorm": st.Config(methods=METHODS, batchnorm=True),
    "no gradient": st.Config(methods=METHODS, gradient=False),
    "measured": st.Config(methods=(st.ChannelSVD(),), search=st.Interaction(images=32), images=64, batch=16),
}
OTHERS = 0.5  # how far a prediction may lie from the one that was drawn towards those of a whole menu


def edited(plan, change):
    """Return the plan after an edit of its JSON."""
    data = json.loads(plan.to_json())
    change(data["layers"])
    return st.Plan.from_json(json.dumps(data))


def assert_same(first, second, rel=1e-9):
    """Check that two plans do the same and predict the same, but for rounding: a harm may be computed with others or alone.

    What unseen images say of one option is drawn towards what they say of all others: there predictions differ a little more.
    """
    assert [(n, o.layer, o.method, o.rank, o.bias) for n, o in first.items()] == [
        (n, o.layer, o.method, o.rank, o.bias) for n, o in second.items()
    ]
    assert [option.harm for option in first.values()] == pytest.approx([option.harm for option in second.values()], rel=rel)
    assert first.original == second.original


@pytest.fixture(scope="module")
def chosen(case):
    model, x, _ = case
    return st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=CONFIGS["refit"])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("data", [True, False])
def test_the_chosen_plan_gives_the_identical_network(case, name, data):
    model, x, _ = case
    calibration = [x] if data else None
    first = st.compress(model, x[:1], budget=st.Keep(0.6), calibration=calibration, config=CONFIGS[name])
    again = st.compress(
        model, x[:1], plan=st.Plan.from_json(first.plan.to_json()), calibration=calibration, config=CONFIGS[name]
    )
    assert first.plan
    assert_same(again.plan, first.plan, OTHERS if data and CONFIGS[name].gradient else 1e-9)
    torch.testing.assert_close(again.model(x), first.model(x), rtol=1e-6, atol=1e-6)
    assert again.report.budget == "the given plan" and "search" not in again.report.seconds
    for field in ("after", "skipped", "measured_harm", "harm_unit", "images"):
        assert getattr(again.report, field) == getattr(first.report, field), field
    assert [row.fitted for row in again.report.rows] == [row.fitted for row in first.report.rows]


def harms_of(prepared, score):
    """Return layer, method and rank to predicted harm."""
    return {
        (row.layer.name, option.method, option.rank): float(harm)
        for row in prepared.menu.layers
        for option, harm in list(zip(row.options, row.scores[score], strict=True))[1:]
    }


@pytest.mark.parametrize("excess", [0, 1])
def test_an_edited_rank_has_the_harm_of_the_new_rank(case, chosen, excess):
    model, x, _ = case
    prepared = st.prepare(model, x[:1], calibration=[x], config=CONFIGS["refit"])
    for name, option in chosen.plan.items():
        if not isinstance(option.rank, int) or option.rank < 3:
            continue
        rank = option.rank - 1 if not excess else option.method.full_rank(option.layer.convolution)
        plan = edited(chosen.plan, lambda rows, name=name, rank=rank: rows[name].update(rank=rank))
        result = st.compress(model, x[:1], plan=plan, calibration=[x], config=CONFIGS["refit"])
        assert result.plan[name].rank == rank and st.cost(result.model, x[:1]) == result.report.after == plan.cost
        known = harms_of(prepared, "response")
        wanted = known.get((name, option.method, rank), 0.0)  # full rank does not pay and is exact
        assert result.plan[name].harm == pytest.approx(wanted, rel=OTHERS, abs=1e-9)
        alone = harms_of(st.prepare(model, x[:1], plan=plan, calibration=[x], config=CONFIGS["refit"]), "closed")
        closed = harms_of(prepared, "closed")
        assert alone == pytest.approx({key: closed.get(key, 0.0) for key in alone}, rel=1e-9, abs=1e-9)
        assert len(alone) == len(plan)
        assert (alone[name, option.method, rank] > closed[name, option.method, option.rank]) == (rank < option.rank)


def test_what_the_plan_says_of_harms_is_not_believed(case, chosen):
    model, x, _ = case
    plan = edited(chosen.plan, lambda rows: [row.update(harm=99.0) for row in rows.values()])
    assert_same(st.compress(model, x[:1], plan=plan, calibration=[x], config=CONFIGS["refit"]).plan, chosen.plan, OTHERS)


def test_layers_may_be_left_out_added_and_given_other_methods(case, chosen):
    model, x, _ = case
    dropped = next(iter(chosen.plan))
    added = st.plan_from(model, x[:1], {"short": (st.ChannelSVD(), 2), "conv2": (st.TensorTrain(), (3, 4, 3))})
    choices = {name: option for name, option in chosen.plan.items() if name not in (dropped, "conv2")} | dict(added)
    result = st.compress(
        model, x[:1], plan=dataclasses.replace(added, choices=choices), calibration=[x], config=CONFIGS["refit"]
    )
    assert set(result.plan) == set(choices) and result.plan["conv2"].method == st.TensorTrain()
    order = [layer.name for layer in st.find_layers(model, x[:1])]
    assert list(result.plan) == [name for name in order if name in choices]  # in order of execution
    assert all(option.bias for option in result.plan.values())  # corrected, as of a chosen plan


def test_an_empty_plan_is_the_network_itself(case):
    model, x, _ = case
    result = st.compress(model, x[:1], plan=st.Plan({}, st.cost(model, x[:1])), calibration=[x])
    assert not result.plan and torch.equal(result.model(x), model(x)) and result.report.kept == (1.0, 1.0)


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_a_budget_given_with_it_is_checked(case, chosen, metric):
    model, x, _ = case
    kept = chosen.plan.cost.of(metric) / chosen.plan.original.of(metric)
    config = CONFIGS["refit"]
    result = st.compress(model, x[:1], plan=chosen.plan, budget=st.Keep(kept, metric), calibration=[x], config=config)
    assert result.report.budget == f"Keep({kept:g}, {metric!r})"
    stages = []
    with pytest.raises(st.BudgetError, match=rf"the given plan keeps 0\.\d+ of the {metric}, more than Keep\(.*; lower ranks"):
        st.compress(
            model,
            x[:1],
            plan=chosen.plan,
            budget=st.Keep(kept - 0.001, metric),
            calibration=[x],
            config=dataclasses.replace(config, progress=lambda stage, share: stages.append(stage)),
        )
    assert "refit" not in stages  # it is known before


def test_a_bound_on_the_drop_given_with_it_is_checked(case, chosen):
    model, x, labels = case
    evaluate = st.Accuracy([(x, labels)])
    given = {"plan": chosen.plan, "calibration": [x], "evaluate": evaluate, "config": CONFIGS["refit"]}
    drop = st.compress(model, x[:1], **given).report.selection.drop
    assert drop > 1
    report = st.compress(model, x[:1], budget=st.MaxDrop(drop), **given).report
    assert report.selection.drop == drop and report.tries == ()
    with pytest.raises(st.BudgetError, match=r"the given plan loses \d+\.\d\d points, more than MaxDrop\(.*; raise ranks"):
        st.compress(model, x[:1], budget=st.MaxDrop(drop - 0.5), **given)
    with pytest.raises(ValueError, match="MaxDrop needs evaluate"):
        st.compress(model, x[:1], plan=chosen.plan, budget=st.MaxDrop(1))
    with pytest.raises(ValueError, match="evaluate returned 30.5; MaxDrop needs a fraction"):
        st.compress(model, x[:1], budget=st.MaxDrop(1), **given | {"evaluate": lambda network: 30.5})


def renamed(plan, old, new):
    choices = {new if name == old else name: option for name, option in plan.items()}
    return dataclasses.replace(plan, choices=choices)


PLANS = {
    "unknown": (
        lambda plan, name: renamed(plan, name, "conv9"),
        "layer 'conv9' cannot be planned: there is no such layer; the layers are stem",
    ),
    "skipped": (
        lambda plan, name: renamed(plan, name, "head"),
        "layer 'head' cannot be planned: excluded by the configuration",
    ),
    "another shape": (
        lambda plan, name: renamed(plan, name, "short"),
        r"the plan does not fit the model: layer 'short' is Conv2d \(24, 12, 1, 1\), the plan has Conv2d",
    ),
    "another kind": (
        lambda plan, name: edited(plan, lambda rows: rows[name]["layer"].update(kind="ConvTranspose2d", output_padding=[0, 0])),
        "the plan does not fit the model: layer 'conv1' is Conv2d .*, the plan has ConvTranspose2d",
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_does_not_fit_gets_a_sentence(case, name):
    model, x, _ = case
    change, words = PLANS[name]
    plan = change(st.plan_from(model, x[:1], {"conv1": (st.ChannelSVD(), 3)}), "conv1")
    with pytest.raises(ValueError, match=words) as caught:
        st.compress(model, x[:1], plan=plan, calibration=[x], config=st.Config(exclude=("head",)))
    assert "\n" not in str(caught.value)


def test_inputs_too_large_for_the_method_get_a_sentence(case, monkeypatch):
    model, x, _ = case
    monkeypatch.setattr("spectrim.sensitivity.moments.LARGEST", 30)
    plan = st.plan_from(model, x[:1], {"conv1": (st.SpatialSVD(), 3)})
    with pytest.raises(ValueError, match="SpatialSVD for layer 'conv1', whose input is too large .*; use ChannelSVD there"):
        st.compress(model, x[:1], plan=plan, calibration=[x])


def test_a_plan_of_any_graph_and_of_a_linear_layer_on_a_map():
    inputs = torch.randn(20, 3, 6, 6), torch.rand(20, 8)
    torch.manual_seed(0)
    model = Odd().eval()
    plan = st.plan_from(model, inputs, {"twice": (st.SpatialSVD(), 4), "right.1": (st.Tucker2(), (4, 3))})
    result = st.compress(model, inputs, plan=plan, calibration=[inputs])
    assert {row.layer: row.fitted for row in result.report.rows if row.fitted} == {
        "twice": "not refitted: one forward calls it more than once",
        "right.1": "refitted on 20 images",
    }
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 20)).eval()
    x = torch.randn(30, 3, 8, 8)
    plan = st.plan_from(network, x, {"3": (st.SpatialSVD(), 5), "0": (st.ChannelSVD(), 2)})
    result = st.compress(network, x, plan=st.Plan.from_json(plan.to_json()), calibration=[x])
    assert st.cost(result.model, x) == result.plan.cost == result.report.after and list(result.plan) == ["0", "3"]
