"""The knapsack against an exact table, and against brute force."""

import itertools

import numpy as np
import pytest

import spectrim as st
from spectrim.core.menu import RESPONSE
from spectrim.search.knapsack import minimum, minimum_within
from spectrim.testing import brute_force, random_menu


def least_by_table(harms, costs, limit):
    """The oracle: least harm for every total cost, class by class."""
    table = np.full(limit + 1, np.inf)
    table[0] = 0.0
    for harm, cost in zip(harms, costs, strict=True):
        shifted = [np.concatenate([np.full(c, np.inf), table])[: limit + 1] + h for h, c in zip(harm, cost, strict=True)]
        table = np.min(shifted, axis=0)
    return table.min()


@pytest.mark.parametrize("kind", ["smooth", "noisy", "proportional", "alike", "few", "gains"])
@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.7, 0.95, 1.0])
def test_the_knapsack_finds_the_least_harm(kind, fraction):
    random = np.random.default_rng([len(kind), int(100 * fraction)])
    for _ in range(20):
        harms, costs = [], []
        for _ in range(3 if kind == "few" else 12):
            cost = np.sort(random.choice(np.arange(1, 300), 2 if kind == "few" else 25, replace=False))
            harm = (1 - cost / 300) ** (1 if kind == "proportional" else 3) * (
                300 if kind == "alike" else random.integers(1, 900)
            )
            harm = harm * np.exp(0.3 * random.normal(size=len(cost))) if kind == "noisy" else harm
            harm = np.minimum.accumulate(harm) - 1e-9 * cost - (900 if kind == "gains" else 0)
            harms.append(harm)
            costs.append(cost)
        least, most = sum(cost[0] for cost in costs), sum(cost[-1] for cost in costs)
        limit = int(least + fraction * (most - least))
        chosen = minimum(harms, costs, limit)
        assert sum(cost[index] for cost, index in zip(costs, chosen, strict=True)) <= limit
        found = sum(harm[index] for harm, index in zip(harms, chosen, strict=True))
        assert found == pytest.approx(least_by_table(harms, costs, limit), rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.3])
def test_another_column_is_minimised_as_well(fraction, metric):
    menu, budget = random_menu(3), st.Keep(fraction, metric)
    random = np.random.default_rng(0)
    columns = [np.append(0.0, random.uniform(size=len(row.options) - 1)) for row in menu.layers]
    chosen = st.Knapsack(score="whitened").select(menu.with_scores("whitened", columns), budget)
    swapped = menu.with_scores(RESPONSE, columns)  # what brute force looks at
    assert sum(column[index] for column, index in zip(columns, chosen, strict=True)) == pytest.approx(
        brute_force(swapped, budget)
    )


@pytest.mark.parametrize("bounds", [2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_several_bounds_against_brute_force(seed, bounds):
    """Costs that do not go together; of the limits some are met by no choice."""
    random = np.random.default_rng([seed, bounds])
    harms = [random.uniform(size=6) ** 3 for _ in range(5)]
    costs = [random.integers(1, 10**7, size=(bounds, 6)) for _ in range(5)]
    limits = [int(random.uniform(0.5, 0.9) * 5e6 * 5) for _ in range(bounds)]
    every = list(itertools.product(range(6), repeat=5))
    spent = {chosen: sum(cost[:, i] for cost, i in zip(costs, chosen, strict=True)) for chosen in every}
    possible = [chosen for chosen in every if (spent[chosen] <= limits).all()]
    found = minimum_within(harms, costs, limits)

    def harm(chosen):
        return sum(harm[i] for harm, i in zip(harms, chosen, strict=True))

    if not possible:
        assert found is None
    else:
        assert (spent[tuple(found)] <= limits).all()
        assert harm(found) == pytest.approx(min(map(harm, possible)), rel=2e-5)


@pytest.mark.parametrize("search", [st.Knapsack(), st.Portfolio(), st.Interaction()], ids=repr)
@pytest.mark.parametrize("fractions", [(0.5, 0.6), (0.4, 0.9), (0.9, 0.35), (0.3, 0.2)])
def test_several_budgets_all_hold_at_the_least_harm(search, fractions):
    assert search.several
    menu = random_menu(2)
    menu = st.Menu(menu.layers, menu.original, also=(st.Keep(fractions[1], "macs"),))
    budget = st.Keep(fractions[0], "params")

    def within(chosen):
        return all(
            menu.cost(chosen, keep.metric) <= keep.fraction * menu.original.of(keep.metric) for keep in (budget, *menu.also)
        )

    every = [c for c in itertools.product(*(range(len(row.options)) for row in menu.layers)) if within(c)]
    best = min((menu.plan(chosen).harm for chosen in every), default=None)
    if best is None:
        with pytest.raises(st.BudgetError):
            search.select(menu, budget)
        return
    chosen = search.select(menu, budget)
    assert within(chosen) and menu.plan(chosen).harm == pytest.approx(best)


def test_budgets_that_hold_alone_and_not_together_get_a_sentence():
    """Each of two layers can pay for one budget only."""
    menu = random_menu(0, layers=1)
    (row,) = menu.layers
    costs = np.array([100, 10, 90]), np.array([100, 90, 10])
    row = st.LayerMenu(
        row.options[:3], dict(zip(("params", "macs"), costs, strict=True)), {RESPONSE: np.array([0.0, 1.0, 1.0])}
    )
    menu = st.Menu((row,), st.Cost(100, 100), also=(st.Keep(0.5, "macs"),))
    with pytest.raises(st.BudgetError, match="Keep.* and Keep.* cannot be met together, though each alone can"):
        st.Knapsack().select(menu, st.Keep(0.5, "params"))
