"""The knapsack against an exact table, and against brute force."""

import numpy as np
import pytest

import spectrim as st
from spectrim.core.menu import RESPONSE
from spectrim.search.knapsack import minimum
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
