"""The portfolio: what it has measured, what it concludes from that, and what it takes."""

import numpy as np
import pytest

import spectrim as st
from spectrim.core.menu import CAUTIOUS, RESPONSE
from spectrim.search.portfolio import MOST, refit_shares
from spectrim.testing import random_menu


def menu_of(seed, layers=6):
    menu = random_menu(seed, layers=layers)
    noise = np.random.default_rng(seed)
    columns = [row.scores[RESPONSE] * noise.uniform(0.5, 1.5) for row in menu.layers]
    return menu.with_scores(CAUTIOUS, columns)


def predicted(menu, chosen):
    return float(sum(row.scores[RESPONSE][index] for row, index in zip(menu.layers, chosen, strict=True)))


class Measuring:
    """Each network does the harm that a function of its choice says, and is measured once."""

    def __init__(self, harm_of, error=0.0):
        self.harm_of, self.error, self.asked = harm_of, error, {}

    def harm(self, chosen):
        return self.asked.setdefault(tuple(chosen), self.harm_of(chosen))

    def gain(self, chosen, other):
        return self.harm(chosen) - self.harm(other), self.error


@pytest.mark.parametrize("seed", range(6))
def test_the_least_measured_harm_wins_of_three_at_most(seed):
    menu, budget = menu_of(seed), st.Keep(0.5, "params")
    random = np.random.default_rng(seed)
    harms = {}
    probe = Measuring(lambda chosen: harms.setdefault(tuple(chosen), random.uniform(0.1, 2) * predicted(menu, chosen)))
    chosen = tuple(st.Portfolio(limit=9.0).select(menu, budget, probe))
    assert harms[chosen] == min(harms.values())
    assert len(probe.asked) <= 3
    assert all(menu.cost(each, "params") <= 0.5 * menu.original.params for each in probe.asked)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("payback", [0.5, 1.0, 3.0])
def test_shares_are_those_that_explain_the_measured_harm(seed, payback):
    menu = menu_of(seed)
    chosen = st.Knapsack().select(menu, st.Keep(0.5, "params"))
    depth = (np.arange(len(menu.layers)) + 0.5) / len(menu.layers)
    left = np.exp(-payback * (1 - depth))
    harms = np.array([row.scores[RESPONSE][index] for row, index in zip(menu.layers, chosen, strict=True)])
    np.testing.assert_allclose(refit_shares(menu, chosen, float(harms @ left)), left, rtol=1e-3)


def test_shares_have_bounds():
    menu = menu_of(0)
    chosen = st.Knapsack().select(menu, st.Keep(0.5, "params"))
    assert (refit_shares(menu, chosen, 1.5 * predicted(menu, chosen)) == 1).all()  # nothing was paid back
    assert refit_shares(menu, chosen, 0.0).min() >= np.exp(-MOST)


def test_a_network_that_pays_back_in_later_layers_has_early_layers_cut_deeper():
    """Where it is true that a share is left, the optimum by it is found, and is better than the additive one."""
    better = 0
    for seed in range(8):
        menu, budget = menu_of(seed), st.Keep(0.5, "params")
        depth = (np.arange(len(menu.layers)) + 0.5) / len(menu.layers)
        left = np.exp(-2.0 * (1 - depth))

        def true(chosen, menu=menu, left=left):
            harms = [row.scores[RESPONSE][index] for row, index in zip(menu.layers, chosen, strict=True)]
            return float(left @ np.array(harms))

        scaled = menu.with_scores(
            RESPONSE, [share * row.scores[RESPONSE] for share, row in zip(left, menu.layers, strict=True)]
        )
        found = true(st.Portfolio().select(menu, budget, Measuring(true)))
        assert found == pytest.approx(true(st.Knapsack().select(scaled, budget)), rel=1e-5)
        better += found < true(st.Knapsack().select(menu, budget)) - 1e-12
    assert better > 2


@pytest.mark.parametrize("errors", [0.5, 1.9, 2.1])
@pytest.mark.parametrize("limit", [1.0, 9.0], ids=["one prediction", "two"])
def test_a_gain_is_taken_if_it_is_certain(errors, limit):
    """Of more than two standard errors, whichever plan it is of; else the best prediction stays."""
    menu, budget = menu_of(1), st.Keep(0.5, "params")
    first = tuple(st.Knapsack().select(menu, budget))

    def true(chosen):
        return 0.3 * predicted(menu, first) * (1.0 if tuple(chosen) == first else 0.9)

    probe = Measuring(true, error=0.03 * predicted(menu, first) / errors)
    chosen = tuple(st.Portfolio(limit=limit).select(menu, budget, probe))
    assert len(probe.asked) == (2 if limit == 1 else 3) and (chosen == first) == (errors < 2)
