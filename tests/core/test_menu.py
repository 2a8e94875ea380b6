"""The menu's columns, on menus that are small enough to go through every choice."""

import itertools

import numpy as np
import pytest

import spectrim as st
from spectrim.core.menu import RESPONSE
from spectrim.testing import random_menu


def beaten(row, index, metric, score):
    """Return whether another option is as cheap and no worse, and better in one of both."""
    cost, value = row.costs[metric], row.scores[score]
    return any(
        cost[other] <= cost[index]
        and value[other] <= value[index]
        and (cost[other], value[other]) != (cost[index], value[index])
        for other in range(len(row.options))
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("metric", ["params", "macs"])
def test_costs_are_those_of_the_options_and_of_the_plan(seed, metric):
    menu = random_menu(seed)
    for row in menu.layers:
        assert row.layer == row.options[0].layer and row.options[0].method is None and row.scores[RESPONSE][0] == 0
        assert row.costs[metric].tolist() == [option.cost.of(metric) for option in row.options]
        assert row.costs[metric].dtype == np.int64
    random = np.random.default_rng(seed)
    for _ in range(20):
        chosen = [int(random.integers(len(row.options))) for row in menu.layers]
        plan = menu.plan(chosen)
        assert menu.cost(chosen, metric) == plan.cost.of(metric)
        assert plan.harm == pytest.approx(
            sum(row.scores[RESPONSE][index] for row, index in zip(menu.layers, chosen, strict=True))
        )
        assert list(plan) == [row.layer.name for row, index in zip(menu.layers, chosen, strict=True) if index]


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_the_least_cost_and_what_is_allowed(metric):
    menu = random_menu(0, layers=3)
    every = list(itertools.product(*(range(len(row.options)) for row in menu.layers)))
    costs = [menu.cost(chosen, metric) for chosen in every]
    assert menu.least(metric) == min(costs)
    for fraction in (1.0, 0.7, 0.4):
        budget = st.Keep(fraction, metric)
        allowed = menu.allowed(budget)
        for chosen, cost in zip(every, costs, strict=True):
            spent = sum(int(row.costs[metric][index]) for row, index in zip(menu.layers, chosen, strict=True))
            assert (spent <= allowed) == (cost <= fraction * menu.original.of(metric) + 1e-6)


def test_budgets_that_no_choice_meets_get_a_sentence():
    menu = random_menu(0)
    with pytest.raises(
        st.BudgetError,
        match=r"Keep\(0.01, 'params'\) cannot be met: .* reach 0\.\d+ at least \(\d+ % are .*\); raise the fraction",
    ):
        menu.allowed(st.Keep(0.01, "params"))
    bare = st.Menu(tuple(st.LayerMenu.of(row.options[:1], [0.0]) for row in menu.layers), menu.original)
    with pytest.raises(st.BudgetError, match="no method pays on any layer"):
        bare.allowed(st.Keep(0.5, "params"))


@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("seed", range(4))
def test_the_frontier_is_what_no_other_option_beats(seed, metric):
    random = np.random.default_rng(seed)
    for row in random_menu(seed).layers:
        menu = st.Menu((row,), row.layer.cost).with_scores("noise", [random.integers(0, 6, len(row.options)).astype(float)])
        for score in (RESPONSE, "noise"):
            (row,) = menu.layers
            found = row.frontier(metric, score).tolist()
            wanted = {
                (row.costs[metric][i], row.scores[score][i])
                for i in range(len(row.options))
                if not beaten(row, i, metric, score)
            }
            pairs = [(row.costs[metric][i], row.scores[score][i]) for i in found]
            assert set(pairs) == wanted and len(found) == len(wanted)  # of equals one
            assert pairs == sorted(pairs) and [p[1] for p in pairs] == sorted((p[1] for p in pairs), reverse=True)


def test_a_column_more_changes_nothing_else():
    menu = random_menu(0)
    columns = [np.arange(len(row.options), dtype=float) for row in menu.layers]
    more = menu.with_scores("mine", columns)
    assert all(set(row.scores) == {RESPONSE} for row in menu.layers)
    for row, old, column in zip(more.layers, menu.layers, columns, strict=True):
        assert row.options is old.options and row.scores[RESPONSE] is old.scores[RESPONSE]
        np.testing.assert_array_equal(row.scores["mine"], column)
    with pytest.raises(ValueError, match="zip"):
        menu.with_scores("mine", columns[1:])


def test_options_without_a_score_are_on_no_frontier():
    row = random_menu(1).layers[0]
    column = np.where(np.arange(len(row.options)) % 2, np.nan, row.scores[RESPONSE])
    (row,) = st.Menu((row,), row.layer.cost).with_scores("measured", [column]).layers
    assert row.scored("measured").tolist() == list(range(0, len(row.options), 2))
    assert not set(row.frontier("params", "measured").tolist()) & set(range(1, len(row.options), 2))
