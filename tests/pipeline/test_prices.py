"""Bytes as a metric, several budgets through the front door, and options that pay in the budget's own metric."""

import dataclasses

import pytest
import torch
from torch import nn

import spectrim as st
from spectrim.network.counting import stored
from spectrim.pipeline.prices import priced

METHODS = (st.ChannelSVD(), st.PivotSVD(), st.SpatialSVD())


class Small(nn.Sequential):
    """Strides, so that parameters and MACs do not go together; a norm, whose buffers are stored too."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 10),
        )


def prepared_of(dtype=torch.float32, **options):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 12, 12, dtype=dtype)
    settings = {"methods": METHODS, "search": st.Knapsack(), "refit": False} | options
    return st.prepare(Small().to(dtype), x[:1], config=st.Config(**settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("methods", [METHODS[:1], METHODS[1:2], METHODS])
def test_bytes_are_those_of_what_is_built(dtype, methods):
    prepared = priced(prepared_of(dtype, methods=methods), ["bytes"])
    menu = prepared.menu
    assert menu.whole("bytes") == sum(x.numel() * x.element_size() for x in prepared.model.state_dict().values())
    assert priced(prepared, ["bytes", "macs"]) is prepared  # a column is made once
    for fraction in (0.9, 0.6):
        plan = st.choose(prepared, st.Keep(fraction, "bytes"))
        built = st.realize(prepared, plan).model
        assert stored(built) == menu.cost(menu.numbers(plan), "bytes") <= fraction * menu.whole("bytes")


def test_several_budgets_hold_in_the_network_that_compress_returns():
    torch.manual_seed(0)
    model, x = Small(), torch.randn(16, 3, 12, 12)
    config = st.Config(methods=METHODS, search=st.Knapsack(), refit=False)
    budget = [st.Keep(0.6, "macs"), st.AtMost(24_000, "bytes"), st.Keep(0.8, "params")]
    result = st.compress(model, x[:1], budget=budget, calibration=[x], config=config)
    assert stored(result.model) <= 24_000 < stored(model)
    assert result.report.kept[1] <= 0.6 and result.report.kept[0] <= 0.8
    assert result.report.budget == "Keep(0.6, 'macs') and AtMost(24000, 'bytes') and Keep(0.8, 'params')"
    alone = st.compress(model, x[:1], budget=budget[0], calibration=[x], config=config)
    assert alone.plan.harm <= result.plan.harm
    with pytest.raises(st.BudgetError, match=r"more than AtMost\(9000, 'bytes'\) allows"):
        st.compress(model, x[:1], budget=[budget[0], st.AtMost(9000, "bytes")], plan=result.plan, config=config)


def test_a_bound_in_numbers_is_that_in_fractions():
    prepared = prepared_of()
    whole = prepared.original.macs
    assert st.choose(prepared, st.AtMost(whole // 2, "macs")) == st.choose(prepared, st.Keep(0.5, "macs"))
    assert not st.choose(prepared, st.AtMost(2 * whole, "macs"))
    with pytest.raises(
        st.BudgetError, match=r"AtMost\(10, 'bytes'\) cannot be met: .* reach [\d,]+ of bytes at least \(\d+ % are"
    ):
        st.choose(prepared, st.AtMost(10, "bytes"))


@dataclasses.dataclass(frozen=True)
class Cheapest(st.Search):
    """A third party's, which knows `Keep` and nothing else; it would take what does not pay if it were offered."""

    def select(self, menu, budget, probe=None):
        assert isinstance(budget, st.Keep) and menu.also == ()
        menu.allowed(budget)
        for row in menu.layers:
            assert all(row.costs[budget.metric][1:] < row.costs[budget.metric][0])
        return [int(row.costs[budget.metric].argmin()) for row in menu.layers]


@pytest.mark.parametrize("metric", ["params", "macs", "bytes"])
def test_options_pay_in_the_budgets_own_metric(metric):
    """A network in which some options save MACs and cost parameters, or the other way round."""
    prepared = prepared_of(search=Cheapest())
    menu = priced(prepared, ["bytes"]).menu
    less = [[row.costs[m][1:] < row.costs[m][0] for m in ("params", "macs")] for row in menu.layers]
    assert any((params ^ macs).any() for params, macs in less)  # else nothing is tested
    plan = st.choose(prepared, st.AtMost(menu.whole(metric), metric))
    assert menu.cost(menu.numbers(plan), metric) == menu.least(metric)


def test_rank_selections_of_one_budget_refuse_several():
    with pytest.raises(ValueError, match="Cheapest holds one budget, and 2 were given; choose by Portfolio"):
        st.choose(prepared_of(search=Cheapest()), [st.Keep(0.5), st.Keep(0.5, "params")])


def test_a_drop_can_be_traded_for_bytes():
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(64, 3, 12, 12)
    with torch.no_grad():
        labels = model(x).argmax(1)
    config = st.Config(methods=METHODS, search=st.Knapsack(), refit=False)
    budget = st.MaxDrop(10, "bytes")
    result = st.compress(model, x[:1], budget=budget, calibration=[x], evaluate=st.Accuracy([(x, labels)]), config=config)
    assert result.report.selection.drop <= 10 and stored(result.model) < stored(model)
    best = min(found.kept for found in result.report.tries if found.drop <= 10)
    assert stored(result.model) == pytest.approx(best * stored(model), rel=0.02)  # a Pivot's order is taken by what reads it
