"""The interaction search: its moves against brute force, its rounds against a probe whose answers are known."""

import itertools

import numpy as np
import pytest

import spectrim as st
from spectrim.core.menu import RESPONSE, LayerMenu
from spectrim.search.interaction import REACH, best_moves, neighbours
from spectrim.testing import random_menu


def convex_menu(seed):
    """A menu whose additive optimum lies between the extremes of its layers."""
    menu, weights = random_menu(seed, layers=5), np.random.default_rng(seed).uniform(0.5, 2, size=5)
    rows = [
        LayerMenu.of(row.options, [float(weight * (1 - o.rank / 30) ** 4) if o.method else 0.0 for o in row.options])
        for weight, row in zip(weights, menu.layers, strict=True)
    ]
    return st.Menu(tuple(rows), menu.original)


def optimum(menu, fraction=0.5, metric="params"):
    return st.Knapsack().select(menu, st.Keep(fraction, metric))


@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("seed", range(4))
def test_neighbours_are_near_on_the_frontier_and_on_both_sides(seed, metric):
    menu = convex_menu(seed)
    chosen = optimum(menu, metric=metric)
    found = neighbours(menu, chosen, metric)
    assert {layer for layer, _ in found} == {layer for layer, now in enumerate(chosen) if now}
    for layer in {layer for layer, _ in found}:
        row, now = menu.layers[layer], chosen[layer]
        costs = row.costs[metric]
        others = [index for index in row.frontier(metric).tolist() if index not in (0, now)]
        own = [index for number, index in found if number == layer]
        assert len(set(own)) == len(own) <= len(REACH) and set(own) <= set(others)
        for side in (-1, 1):
            there = [index for index in others if (costs[index] - costs[now]) * side > 0]
            taken = [index for index in own if (costs[index] - costs[now]) * side > 0]
            assert len(taken) == min(2, len(there))


def test_a_layer_that_is_left_alone_has_no_neighbours():
    menu = convex_menu(0)
    assert neighbours(menu, [0] * len(menu.layers), "params") == []


@pytest.mark.parametrize("seed", range(20))
def test_best_moves_keep_the_budget_and_lower_the_harm_as_far_as_brute_force(seed):
    menu = convex_menu(0)
    chosen = optimum(menu)
    alternatives = neighbours(menu, chosen, "params")
    owners = [layer for layer, _ in alternatives]
    prices = [int(menu.layers[l].costs["params"][i] - menu.layers[l].costs["params"][chosen[l]]) for l, i in alternatives]
    random = np.random.default_rng(seed)
    count = len(alternatives)
    root, linear = random.normal(size=(count, 8)), 0.5 * random.normal(size=count)
    model, slack = st.QuadraticModel(1.0, linear, root @ root.T / 40), int(random.integers(0, 60))
    moves = best_moves(model, owners, [[price] for price in prices], [slack])
    assert len({owners[move] for move in moves}) == len(moves) and sum(prices[move] for move in moves) <= slack
    rows = [[None, *(i for i, owner in enumerate(owners) if owner == layer)] for layer in dict.fromkeys(owners)]
    joint = [[i for i in choice if i is not None] for choice in itertools.product(*rows)]
    harms = np.array([model.harm(choice) for choice in joint if sum(prices[i] for i in choice) <= slack])
    assert harms.min() - 1e-12 <= model.harm(moves) <= model.base
    assert (harms < model.harm(moves) - 1e-12).sum() <= 2  # local search over single and paired moves


def test_one_layer_pays_for_another():
    """Neither move alone is possible or pays; both together do."""
    model = st.QuadraticModel(1.0, np.array([0.1, -0.5]), np.zeros((2, 2)))
    assert best_moves(model, [0, 1], [[-10], [10]], [0]) == [0, 1]
    assert best_moves(model, [0, 1], [[-10], [11]], [0]) == []
    assert best_moves(model, [0, 1], [[-10, 1], [10, 1]], [0, 2]) == [0, 1]  # under two bounds
    assert best_moves(model, [0, 1], [[-10, 1], [10, 1]], [0, 1]) == []


def test_interactions_decide_where_single_moves_do_not():
    """Two gains that undo each other together: only one is taken, which is more than the sum of both."""
    model = st.QuadraticModel(1.0, np.array([-0.3, -0.2]), np.array([[0.0, 0.9], [0.9, 0.0]]))
    assert best_moves(model, [0, 1], [[0], [0]], [0]) == [0]
    assert model.harm([0, 1]) == pytest.approx(1.4) and model.additive([0, 1]) == pytest.approx(0.5)


class KnownProbe:
    """Every cheaper alternative costs 0.01, every dearer one pays 1; what is built gains as told."""

    def __init__(self, menu, gains):
        self.menu, self.gains, self.asked = menu, list(gains), []

    def harm(self, chosen):
        return np.inf  # nothing was paid back

    def quadratic_model(self, chosen, alternatives):
        self.asked.append(list(chosen))
        costs = [self.menu.layers[layer].costs["params"] for layer, _ in alternatives]
        cheaper = [cost[index] < cost[chosen[layer]] for cost, (layer, index) in zip(costs, alternatives, strict=True)]
        slopes = np.where(cheaper, 0.01, -1.0)
        return st.QuadraticModel(10.0, slopes, np.zeros((len(slopes), len(slopes))))

    def gain(self, chosen, other):
        assert list(chosen) == self.asked[-1] != list(other)
        return self.gains.pop(0)


@pytest.mark.parametrize(
    ("gains", "rounds", "asked", "accepted"),
    [
        ([(1.0, 0.5), (1.0, 2.0)], 9, 2, 1),  # the second is within its error
        ([(0.1, 0.2)], 9, 1, 0),
        ([(-1.0, 0.1)], 9, 1, 0),
        ([(1.0, 0.5)] * 3, 3, 3, 3),
        ([(1.0, np.inf)], 1, 1, 0),  # of one batch there is no error
        ([], 0, 0, 0),
    ],
)
def test_a_round_that_does_not_pay_ends_the_search(gains, rounds, asked, accepted):
    menu, budget = convex_menu(2), st.Keep(0.5, "params")
    probe = KnownProbe(menu, gains)
    chosen = st.Interaction(rounds=rounds).select(menu, budget, probe)
    assert len(probe.asked) == asked and not probe.gains
    assert menu.cost(chosen, "params") <= 0.5 * menu.original.params
    assert (list(chosen) == optimum(menu)) == (not accepted)
    starts = [tuple(start) for start in probe.asked]
    assert starts[:1] == [tuple(optimum(menu))][:asked] and len(set(starts)) == len(starts)


@pytest.mark.parametrize("fraction", [0.9, 0.5])
def test_without_a_probe_it_is_the_additive_optimum(fraction):
    menu = convex_menu(1)
    assert st.Interaction().select(menu, st.Keep(fraction, "params")) == optimum(menu, fraction)
    assert st.Interaction().score == RESPONSE
