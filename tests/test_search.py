import numpy as np
import pytest
import torch

import spectrim as st
from nets import Residual, settle
from spectrim.score.weights import energy, spectral, vbmf, vbmf_rank
from spectrim.search import SEARCHES
from spectrim.search.knapsack import frontier, minimum
from spectrim.surgery import working_weight
from spectrim.testing import brute_force, check_search, random_menu


@pytest.mark.parametrize("name", SEARCHES)
def test_every_rank_selection_keeps_its_contract(name):
    check_search(SEARCHES[name](), exact=name == "Knapsack")
    assert SEARCHES[name].reference and SEARCHES[name].title == name


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


@pytest.mark.parametrize("name", SEARCHES)
def test_every_rank_selection_through_the_front_door(name):
    x = torch.randn(32, 3, 8, 8)
    model = settle(Residual(), x)
    methods = (st.ChannelSVD(), st.SpatialSVD())
    config = st.Config(methods=methods, search=SEARCHES[name](), refit=False)
    additive = st.Config(methods=methods, refit=False)
    harms = {}
    for fraction in (0.8, 0.4):
        result = st.compress(model, x[:1], budget=st.Keep(fraction), calibration=[x], config=config)
        assert result.report.kept[1] <= fraction
        harms[fraction] = result.plan.harm
        best = st.compress(model, x[:1], budget=st.Keep(fraction), calibration=[x], config=additive)
        assert best.plan.harm <= result.plan.harm * (1 + 1e-5)  # harms are nats whatever the search looks at
    assert harms[0.8] < harms[0.4]


def test_equal_levels_are_optimal_for_the_largest_harm():
    """ALDS's criterion against brute force over all choices."""
    import itertools

    for seed in range(3):
        menu = random_menu(seed, layers=3)
        for fraction in (0.7, 0.4):
            budget = st.Keep(fraction, "params")
            limit = fraction * menu.original.params
            fixed = menu.original.params - sum(row[0].cost.params for row in menu.options)
            best = min(
                max(option.harm for option in choice)
                for choice in itertools.product(*menu.options)
                if fixed + sum(option.cost.params for option in choice) <= limit
            )
            plan = st.ALDS().select(menu, budget)
            assert max(option.harm for option in plan.values()) == pytest.approx(best)


def test_scores_of_weights():
    x = torch.randn(2, 3, 8, 8)
    model = Residual()
    layer = {layer.name: layer for layer in st.find_layers(model, x)}["conv2"]
    weight = working_weight(layer, model.conv2)
    values = np.linalg.svd(weight[0].flatten(1).numpy(), compute_uv=False)
    method = st.ChannelSVD()
    np.testing.assert_allclose(spectral(method, layer, weight, [2, 5]), [values[2] / values[0], values[5] / values[0]])
    np.testing.assert_allclose(energy(method, layer, weight, [3])[0], (values[3:] ** 2).sum() / (values**2).sum())
    low, high = vbmf(method, layer, weight, [2, 4])
    assert low - high == pytest.approx(np.log(2))


def test_vbmf_finds_the_rank_under_noise():
    random = np.random.default_rng(0)
    for rank in (3, 10):
        signal = random.normal(size=(60, rank)) @ random.normal(size=(rank, 300))
        assert vbmf_rank(signal + 0.5 * random.normal(size=(60, 300))) == rank
    assert vbmf_rank(random.normal(size=(60, 300))) == 0


def test_frontier_is_what_no_other_option_beats():
    for row in random_menu(1).options:
        kept = frontier(row, "params")
        for option in row:
            better = [o for o in row if o.cost.params <= option.cost.params and o.harm < option.harm]
            assert option in kept or better or any(o.cost == option.cost and o.harm == option.harm for o in kept)


def test_budgets():
    assert st.Keep(1.0, "params").fraction == 1
    for bad in (0, -0.5, 1.2, float("nan"), "0.5"):
        with pytest.raises(ValueError, match="allowed is a fraction"):
            st.Keep(bad, "macs")
    with pytest.raises(ValueError, match="allowed are 'params' and 'macs'"):
        st.Keep(0.5, "flops")
    for bad in (-1, float("inf"), 100, "1.5"):
        with pytest.raises(ValueError, match="allowed are points"):
            st.MaxDrop(bad, "macs")
    with pytest.raises(st.BudgetError, match=r"reach \d\.\d+ at least; raise the fraction"):
        st.Knapsack().select(random_menu(0), st.Keep(0.01, "params"))
    assert brute_force(random_menu(0), st.Keep(0.01, "params")) is None
