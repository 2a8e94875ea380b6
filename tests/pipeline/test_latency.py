"""Latency as a column of costs: a target whose times are known, so that no clock decides a test."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import spectrim as st
from spectrim.core.menu import LayerMenu
from spectrim.core.plan import Option
from spectrim.network.calling import call
from spectrim.network.pivot import Pivot
from spectrim.network.survey import survey
from spectrim.pipeline import latency as latency_module
from spectrim.pipeline import stopwatch as stopwatch_module
from spectrim.pipeline.latency import CLIP, DEPTHS, calibrating, fitted, formula
from spectrim.pipeline.prices import priced
from spectrim.pipeline.stopwatch import Stopwatch, stand_in
from spectrim.targets import base as base_module
from spectrim.targets.base import Session, Target

METHODS = (st.ChannelSVD(), st.PivotSVD(), st.SpatialSVD(), st.CP("kernel"))
FIXED = 0.2  # of the original's formula that is not its layers'


@dataclasses.dataclass(frozen=True)
class Formula(Target):
    """Takes as long as its own formula says, summed over the convolutions and linear layers of the network it is given."""

    title = "Formula"
    word = "formula"
    optimism: float = 1.0  # what depthwise convolutions take beyond what `predict` says

    def load(self, model, example):
        loaded.append(model)
        return Session(lambda: model, 0)

    def time(self, model, example):
        layers = survey(model, example).layers
        return sum(self.predict(layer) * (self.optimism if layer.groups > 1 else 1.0) for layer in layers)

    def describe(self):
        return {"target": self.title, "optimism": str(self.optimism)}


loaded = []


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(48, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


X = torch.randn(2, 3, 12, 12)


@pytest.fixture
def known(monkeypatch):
    """Sessions take what the target's formula says of the network that they were made of, and a share that is fixed."""
    loaded.clear()
    base = {}

    def interleaved(sessions, **given):
        target = base["target"]
        models = [session.run() for session in sessions]
        times = [target.time(model, X[:1]) for model in models]
        fixed = FIXED / (1 - FIXED) * times[0]
        return [np.full((3, 2), 1e-6 * (time + fixed)) for time in times]

    monkeypatch.setattr(stopwatch_module, "interleaved", interleaved)
    monkeypatch.setattr(base_module, "MOVED", 0)  # `Formula.time` sees no Pivot

    def prepared(target, **options):
        base["target"] = target
        torch.manual_seed(0)
        settings = {"methods": METHODS, "search": st.Knapsack(), "refit": False, "target": target} | options
        return st.prepare(Net(), X[:1], config=st.Config(**settings))

    return prepared


def true_ratio(prepared, plan, target):
    """The oracle: the time of the network that is built."""
    original = target.time(prepared.model, X[:1])
    built = target.time(st.realize(prepared, plan).model, X[:1])
    return FIXED + (1 - FIXED) * built / original


@pytest.mark.parametrize("optimism", [1.0, 1.3])
@pytest.mark.parametrize("fraction", [0.8, 0.6, 0.45])
def test_the_time_of_the_network_that_is_built_holds_the_budget(known, fraction, optimism):
    target = Formula(optimism=optimism)
    prepared = known(target)
    plan = st.choose(prepared, st.Keep(fraction, "latency"))
    assert fraction * 0.95 <= true_ratio(prepared, plan, target) <= fraction
    assert plan.spent.seconds["timing"] >= 0
    predicted = st.choose(prepared, st.Keep(fraction, "latency"), measure=False)
    assert true_ratio(prepared, predicted, target) <= fraction * (1.02 if optimism == 1 else 1.2)


def test_the_column_is_what_the_target_takes(known):
    target = Formula()
    prepared = priced(known(target), ["latency"])
    menu = prepared.menu
    assert menu.whole("latency") == pytest.approx(target.time(prepared.model, X[:1]) / (1 - FIXED), rel=1e-6)
    fixed = menu.whole("latency") - sum(int(row.costs["latency"][0]) for row in menu.layers)
    assert fixed / menu.whole("latency") == pytest.approx(FIXED, rel=0.05)
    random = np.random.default_rng(0)
    for _ in range(5):
        chosen = [int(random.integers(len(row.options))) for row in menu.layers]
        ratio = true_ratio(prepared, menu.plan(chosen), target)
        assert menu.cost(chosen, "latency") / menu.whole("latency") == pytest.approx(ratio, rel=0.03)


def test_networks_that_calibrate_have_every_method_alone_and_several_depths(known):
    target = Formula()
    menu = known(target).menu
    units = [np.array([formula(target, option) for option in row.options]) for row in menu.layers]
    cheapest, *others = calibrating(menu, units, METHODS)
    assert cheapest == [int(unit.argmin()) for unit in units] and len(others) == len(METHODS)
    for method, chosen in zip(METHODS, others, strict=True):
        depths = itertools.cycle(DEPTHS)
        for row, unit, index in zip(menu.layers, units, chosen, strict=True):
            pays = [unit[i] for i, option in enumerate(row.options) if option.method == method and unit[i] < unit[0]]
            assert (index > 0) == bool(pays)
            if pays:
                wanted = next(depths) * unit[0]
                assert row.options[index].method == method
                assert abs(unit[index] - wanted) == min(abs(each - wanted) for each in pays)


@pytest.mark.parametrize(("worth", "alone"), [(0.1, 1), (0.2, 0)])
def test_methods_that_fit_little_of_the_network_are_not_timed_alone(known, monkeypatch, worth, alone):
    """CP is left on the second layer only, which has 17 % of the formula."""
    target = Formula()
    menu = known(target, methods=(st.ChannelSVD(), METHODS[3])).menu
    rows = []
    for number, row in enumerate(menu.layers):
        options = [option for option in row.options if number == 1 or option.method != METHODS[3]]
        rows.append(LayerMenu.of(options, [0.0] * len(options)))
    units = [np.array([formula(target, option) for option in row.options]) for row in rows]
    assert 0.1 < units[1][0] / sum(unit[0] for unit in units) < 0.2
    monkeypatch.setattr(latency_module, "WORTH", worth)
    assert len(calibrating(st.Menu(tuple(rows), menu.original), units, (st.ChannelSVD(), METHODS[3]))) == 2 + alone


def test_several_budgets_one_of_them_time(known):
    target = Formula()
    prepared = known(target)
    whole = Stopwatch.of(prepared, prepared.ledger()).whole()
    budget = [st.AtMost(0.6 * whole / 1e6, "latency"), st.Keep(0.3, "params")]
    plan = st.choose(prepared, budget)
    assert true_ratio(prepared, plan, target) <= 0.6 and plan.cost.params <= 0.3 * plan.original.params
    with pytest.raises(st.BudgetError, match=r"Keep\(0.1, 'latency'\) cannot be met: .* \((19|20|21) % are of parts"):
        st.choose(prepared, st.Keep(0.1, "latency"))


def test_every_network_is_timed_once_and_an_interrupted_run_goes_on(known, tmp_path):
    target = Formula()
    first = st.choose(known(target, cache=tmp_path), st.Keep(0.6, "latency"))
    count = len(loaded)
    loaded.clear()
    assert st.choose(known(target, cache=tmp_path), st.Keep(0.6, "latency")) == first and not loaded
    second = st.choose(known(target, cache=tmp_path), st.Keep(0.55, "latency"))  # calibration serves every budget
    assert 0 < len(loaded) < count and second != first
    loaded.clear()
    other = Formula(optimism=1.1)  # another target, other times
    st.choose(known(other, cache=tmp_path), st.Keep(0.6, "latency"))
    assert len(loaded) >= count - 2


def test_a_given_plan_is_timed(known):
    target = Formula()
    prepared = known(target)
    plan = st.choose(prepared, st.Keep(0.6, "latency"))
    given = {"plan": plan, "config": prepared.config}
    with pytest.raises(
        st.BudgetError, match=r"the given plan keeps 0\.5\d+ of the latency, more than Keep\(0.4, 'latency'\) allows"
    ):
        st.compress(Net(), X[:1], budget=st.Keep(0.4, "latency"), **given)


def test_a_drop_can_be_traded_for_time(known):
    target = Formula()
    prepared = known(target)
    x = torch.randn(64, 3, 12, 12)
    with torch.no_grad():
        labels = prepared.model(x).argmax(1)
    result = st.maxdrop(prepared, st.MaxDrop(10, "latency"), st.Accuracy([(x, labels)]))
    menu = priced(prepared, ["latency"]).menu
    kept = menu.cost(menu.numbers(result.plan), "latency") / menu.whole("latency")
    held = [found.kept for found in result.report.tries if found.drop <= 10]
    assert result.report.selection.drop <= 10 and kept == pytest.approx(min(held)) and kept < 1
    assert true_ratio(prepared, result.plan, target) == pytest.approx(kept, abs=0.03)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_networks_of_random_weights_have_the_structure_and_sane_outputs(method):
    model = Net().eval()
    found = survey(model, X)
    plan = st.Plan({layer.name: Option(layer, method, 4) for layer in found.layers if method.fits(layer)}, st.cost(model, X))
    small, again = stand_in(plan, model), stand_in(plan, model)
    assert st.cost(small, X) == plan.cost
    with torch.no_grad():
        wanted, outputs = call(model, X), call(small, X)
    assert outputs.isfinite().all() and 1e-3 < float(outputs.norm() / wanted.norm()) < 1e3
    torch.testing.assert_close(call(again, X), outputs)  # the same every time
    orders = [module.order for module in small.modules() if isinstance(module, Pivot)]
    assert all(not torch.equal(order, torch.arange(len(order))) for order in orders) and bool(orders) == (method == METHODS[1])


@pytest.mark.parametrize("seed", range(5))
def test_share_and_factors_are_found_where_there_is_no_noise(seed):
    random = np.random.default_rng(seed)
    share, factors = random.uniform(0.5, 0.9), random.uniform(0.9, 1.2, 3)
    there = np.vstack([np.full(3, 0.02), np.eye(3) * 0.5])
    gone = np.array([1.0, *random.uniform(0.9, 1.0, 3)])
    saved = share * gone - there @ (share * factors)
    found, each = fitted(saved, gone, there)
    assert found == pytest.approx(share, abs=0.03)
    np.testing.assert_allclose(each, factors, atol=0.06)


def test_wild_measurements_are_clipped():
    share, each = fitted(np.array([2.0, -3.0]), np.ones(2), np.array([[0.1, 0.0], [0.0, 0.5]]))
    assert 0.2 <= share <= 1 and (each >= CLIP[0]).all() and (each <= CLIP[1]).all()


def test_the_formula_counts_blocks_of_sixteen_channels_and_what_a_pivot_moves():
    target = Formula()
    (layer,) = survey(nn.Sequential(nn.Conv2d(16, 32, 3, padding=1)), torch.zeros(1, 16, 5, 5)).layers

    def of(method, rank):
        return formula(target, Option(layer, method, rank))

    assert formula(target, Option(layer)) == (16 * 9 + 20) * 32 * 25
    assert (
        of(st.ChannelSVD(), 9) - (9 + 20) * 32 * 25 == of(st.ChannelSVD(), 16) - (16 + 20) * 32 * 25 == (16 * 9 + 20) * 16 * 25
    )
    assert of(st.PivotSVD(), 16) > (16 * 9 + 20) * 16 * 25 + (16 + 20) * 16 * 25
    assert math.isfinite(of(st.CP("kernel"), 4))
